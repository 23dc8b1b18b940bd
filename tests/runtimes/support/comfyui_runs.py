"""Runs of ComfyUI's small models: unpatched, patched, and with dense logits. `comfyui_source.comfyui()` comes first."""

import functools
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
from comfyui_facts import facts_of
from comfyui_models import EXAMPLES
from dense import oracle
from lengths import plan_of_call

import freeloc

TRAINED = 3
BY_NAME = {example.label: example for example in EXAMPLES}


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
    return freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=TRAINED).model_copy(
        update={"layers": layers}
    )


def run(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return output if isinstance(output, torch.Tensor) else output[0]


def patched(name, inputs):
    """The output under a profile, and the report."""
    with freeloc.patch(model_of(name), profile_of(model_of(name))) as patch:
        return run(model_of(name), inputs), patch.report()


def difference(one, other):
    """The largest, as a share of the largest number of the second."""
    return float((one - other).abs().max() / other.abs().max())


def compare(name, inputs, grid, attention, monkeypatch, first=0, last=0, **changed):
    """The output unpatched, with dense logits, and patched while ComfyUI uses a kernel.

    Args:
        name: name of the example.
        inputs: arguments of the model.
        grid: latent frames of the video, rows and columns of tokens.
        attention: name of ComfyUI's kernel. The dense logits take the place of PyTorch's.
        monkeypatch: undoes the choice of the kernel.
        first, last: references before and after the frames of the video, beside those that every call has.
        changed: facts that this call changes.
    """
    model = model_of(name)
    profile, facts = profile_of(model), replace(facts_of(name, model), **changed)
    frames = grid[0] + first + last

    def plan(layer, count):
        return plan_of_call(profile, layer, count, facts.spacing, facts.references + first, last)

    with oracle(model, facts, plan, frames, *grid[1:]):
        expected = run(model, inputs)
    choose(attention, monkeypatch)
    before = run(model, inputs)
    found, report = patched(name, inputs)
    return SimpleNamespace(before=before, expected=expected, found=found, report=report)
