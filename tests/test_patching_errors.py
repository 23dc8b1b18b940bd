"""Errors for bad input: each says what was expected and what was found."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_profile, wan_inputs
from torch import nn

import freeloc
from freeloc.testing import examples


class TestBadInput:
    def test_no_frames(self, small_wan):
        inputs = wan_inputs(9, hidden_states=torch.zeros(1, 4, 0, 6, 10))
        with pytest.raises(freeloc.errors.LayoutError, match=r"at least 1 latent frame.*found 0 x 3 x 5"):  # noqa: SIM117
            with freeloc.patch(small_wan, make_profile()):
                small_wan(**inputs)

    def test_a_tensor_of_other_axes(self, small_wan):
        with (
            pytest.raises(freeloc.errors.LayoutError, match=r"axes \(b c f h w\), found shape \(1, 4, 6, 10\)"),
            freeloc.patch(small_wan, make_profile()),
        ):
            small_wan(**wan_inputs(9, hidden_states=torch.zeros(1, 4, 6, 10)))

    def test_a_layer_that_makes_no_attention_call(self, small_wan, run):
        class Linear:
            def __call__(self, attn, hidden_states, *rest):
                q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
                return attn.to_out[0](q @ (k.mT @ v))

        small_wan.blocks[1].attn1.set_processor(Linear())
        with (
            pytest.raises(
                freeloc.errors.LayoutError,
                match=r"blocks\.1\.attn1 \(WanAttention\) made no call of .*linear attention",
            ),
            freeloc.patch(small_wan, make_profile()),
        ):
            run(small_wan, 9)

    def test_tokens_that_are_not_the_grid(self, small_wan, run):
        def drop_a_token(module, args):
            cos, sin = args[3]
            return args[0][:, 1:], *args[1:3], (cos[:, 1:], sin[:, 1:])

        small_wan.blocks[0].attn1.register_forward_pre_hook(drop_a_token)
        with (
            pytest.raises(
                freeloc.errors.LayoutError,
                match=r"blocks\.0\.attn1: expected 135 tokens, 9 latent frames of 3 x 5 = 135, found 134: the model "
                r"has added or dropped tokens, .* \(adapter 'wan'\)",
            ),
            freeloc.patch(small_wan, make_profile()),
        ):
            run(small_wan, 9)

    def test_a_block_that_is_called_without_its_transformer(self, small_wan):
        with (
            pytest.raises(freeloc.errors.LayoutError, match=r"ran outside a call of .*Call model\(\.\.\.\)"),
            freeloc.patch(small_wan, make_profile()),
        ):
            small_wan.blocks[0].attn1(torch.zeros(1, 30, 48))

    def test_causal_attention(self, small_wan, run):
        class Causal:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, mask=None, rope=None):
                q = k = v = attn.to_q(hidden_states).unflatten(2, (2, -1)).transpose(1, 2)
                return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

        small_wan.blocks[0].attn1.set_processor(Causal())
        with (
            pytest.raises(freeloc.errors.LayoutError, match="expected is_causal=False in its attention, found True"),
            freeloc.patch(small_wan, make_profile()),
        ):
            run(small_wan, 9)

    def test_a_model_that_no_adapter_describes(self):
        wording = r"Looked at: torch\.nn\.modules\.linear\.Linear.*docs/write-an-adapter"
        with pytest.raises(freeloc.errors.AdapterError, match=wording):
            freeloc.patch(nn.Linear(2, 2), make_profile())

    def test_an_unknown_method(self, small_wan):
        with pytest.raises(freeloc.FreelocError, match="no method is named 'vprr'; did you mean vrpr"):
            freeloc.patch(small_wan, make_profile(), method="vprr")

    @pytest.mark.parametrize("made", [None, torch.zeros(9, 9), [torch.zeros(9, 9)] * 2, []])
    def test_a_method_that_makes_no_plan(self, small_wan, run, made):
        wording = "expected (the method to make a FramePlan|a plan for each of 2 heads)"
        with (
            freeloc.patch(small_wan, make_profile(), method=lambda profile, layer, frames: made),
            pytest.raises(freeloc.errors.LayoutError, match=wording),
        ):
            run(small_wan, 9)

    def test_a_plan_of_lists(self):
        with pytest.raises(freeloc.FreelocError, match="as tensors, found list and list"):
            freeloc.FramePlan([[0.0]], [[2]])

    def test_a_name_in_place_of_an_adapter(self, small_wan):
        with pytest.raises(freeloc.errors.AdapterError, match=r"expected adapter to be an Adapter.*found 'wan'"):
            freeloc.patch(small_wan, make_profile(), adapter="wan")

    def test_no_such_head(self):
        with pytest.raises(freeloc.FreelocError, match="expected a head from 0 to 1, found 9"):
            freeloc.frame_plan(make_profile(), layer=0, frames=9, head=9)

    @pytest.mark.parametrize("method", ["riflex", "yarn"])
    def test_frequencies_that_heads_do_not_share_are_refused_before_anything_runs(self, method):
        model = next(example for example in examples("mochi")).model()
        profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
        with pytest.raises(freeloc.errors.PatchError, match="each head of this model has its own"):
            freeloc.patch(model, profile, method=method)
        freeloc.patch(model, profile).remove()

    def test_a_plan_for_another_number_of_frames(self, small_wan, run):
        def wrong(profile, layer, frames):
            return freeloc.FramePlan.identity(frames + 1)

        with (
            pytest.raises(
                freeloc.errors.LayoutError, match="expected a plan for 9 latent frames, the method made one for 10"
            ),
            freeloc.patch(small_wan, make_profile(), method=wrong),
        ):
            run(small_wan, 9)
