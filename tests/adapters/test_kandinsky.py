"""Kandinsky: without its own rounding it equals the oracle; tokens that are no grid are refused."""

from types import ModuleType
from unittest import mock

import pytest
import torch
from diffusers.models.transformers import transformer_kandinsky
from freeloc_adapters.examples import kandinsky
from test_families import POLICIES, compare, run

import freeloc


@pytest.mark.parametrize("policy", POLICIES)
def test_without_rounding_to_bfloat16_kandinsky_5_equals_the_oracle(policy):
    exact = ModuleType("torch")
    vars(exact).update(vars(torch), bfloat16=torch.float32)
    with mock.patch.object(transformer_kandinsky, "torch", exact):
        runs = compare("kandinsky5", policy, frames=12)
    assert (runs.found - runs.expected).abs().max() <= 2e-5


def test_sparse_attention_of_its_own_is_refused():
    model, inputs = kandinsky.kandinsky_5(), kandinsky.inputs_5(9, 8, 8, 1)
    with (
        freeloc.patch(model, freeloc.default_profile(model, "vrpr", 4)),
        pytest.raises(freeloc.errors.LayoutError, match="NABLA"),
    ):
        run(model, inputs | {"sparse_params": {"to_fractal": True}})


def test_a_reference_frame_at_the_end_is_refused():
    model, inputs = kandinsky.kandinsky_6(), kandinsky.inputs_6(9, 2, 3, 1)
    positions = torch.tensor([*range(8), 0]), torch.arange(2), torch.arange(3)
    with (
        freeloc.patch(model, freeloc.default_profile(model, "vrpr", 4)),
        pytest.raises(freeloc.errors.LayoutError, match="a reference frame"),
    ):
        run(model, inputs | {"visual_rope_pos": positions})
