"""ComfyUI's own video models, small and random: the conformance suite, and dense logits from un-rotated q and k."""

import functools
import sys
from types import SimpleNamespace

import pytest
import torch
from comfyui_source import comfyui

pytestmark = pytest.mark.runtimes
COMFYUI = comfyui("--use-pytorch-cross-attention")

from comfyui_facts import facts_of  # noqa: E402 - after ComfyUI has read its options
from comfyui_models import EXAMPLES  # noqa: E402
from dense import oracle  # noqa: E402
from lengths import plan_of_call  # noqa: E402

import freeloc  # noqa: E402
from freeloc.testing import run_checks  # noqa: E402

TRAINED = 3
BY_NAME = {example.label: example for example in EXAMPLES}
every_model = pytest.mark.parametrize("name", BY_NAME)
every_attention = pytest.mark.parametrize("attention", ["pytorch", "sub_quad", "split"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def choose(name, monkeypatch):
    """Let ComfyUI use this kernel, which depends on its options and the machine, wherever it has imported one."""
    import comfy.ldm.modules.attention as kernels

    chosen = kernels.get_attention_function(name)
    for module in [module for path, module in sys.modules.items() if path.startswith("comfy.")]:
        if hasattr(module, "optimized_attention"):
            monkeypatch.setattr(module, "optimized_attention", chosen)


@functools.cache
def model_of(name):
    return BY_NAME[name].model()


def profile_of(model):
    """Every policy that the model supports, alternating over its layers."""
    adapter = freeloc.discovery.find_adapter(model)
    policies = ["tsa", "none"] if adapter.rope_of(model) is None else ["vrpr+tsa", "vrpr", "tsa"]
    count = adapter.shape(model).layers
    layers = {name: list(range(count))[index :: len(policies)] for index, name in enumerate(policies)}
    return freeloc.default_profile(model, trained_latent_frames=TRAINED).model_copy(update={"layers": layers})


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def run(model, inputs):
    with torch.no_grad():
        return first(model(**inputs))


def difference(one, other):
    return float((one - other).abs().max() / other.abs().max())


def compare(name, inputs, frames, height, width, monkeypatch, attention="pytorch"):
    """The output unpatched, under the oracle, and patched with another kernel in place."""
    model = model_of(name)
    profile, facts = profile_of(model), facts_of(name, model)

    def plan(layer, count):
        return plan_of_call(profile, layer, count, facts.spacing, facts.references)

    with oracle(model, facts, plan, frames, height, width):
        expected = run(model, inputs)
    choose(attention, monkeypatch)
    before = run(model, inputs)
    with freeloc.patch(model, profile) as patch:
        found = run(model, inputs)
    return SimpleNamespace(before=before, expected=expected, found=found, report=patch.report())


@every_attention
@every_model
def test_conformance(name, attention, monkeypatch):
    model_of(name)
    choose(attention, monkeypatch)
    failed = [f"{result.check}: {result.problem or result.blocked}" for result in run_checks(BY_NAME[name])
              if not result.met]  # fmt: skip
    assert failed == []


@every_attention
@every_model
def test_equals_dense_logits_at_4x(name, attention, monkeypatch):
    size = 4 * TRAINED, 3, 5
    runs = compare(name, BY_NAME[name].inputs(*size, 2), *size, monkeypatch, attention)
    assert difference(runs.found, runs.expected) <= 1e-5
    assert difference(runs.found, runs.before) > 1e-3
    assert runs.report.corrected_calls > 0
