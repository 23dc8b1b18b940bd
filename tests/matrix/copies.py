"""Copies and files.

A patched model that is copied, pickled, saved and loaded; also with a cache, offloading, LoRA or compiled code on it.
"""

import copy
import io
import pickle
import tempfile
from typing import Any

import diffusers_caches as caches
import torch

import freeloc

from .cell import ORDERS, Apply, Case, Cell, Exact, Fails, difference, worst
from .compilation import repeated
from .lora import add
from .offloading import OFFLOADS, cast


def deep(model: Any) -> Any:
    return copy.deepcopy(model)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def copied(how: Apply) -> Any:
    """The copy is patched by itself: it stays so when the model's patch is removed, and the other way round."""

    def body(case: Case) -> Exact:
        with case.patch() as patch:
            case.run(frames=12)
            other = how(case.model)
            before = str(patch.report())
            found = [case.exact(case.run(other)), case.exact(case.run(other, 12), 12)]
            assert str(patch.report()) == before  # the copy's calls are not the model's
            found.append(case.exact(case.run()))
        assert torch.equal(case.run(), case.plain())
        found.append(case.exact(case.run(other)))
        freeloc.unpatch(other)
        assert torch.equal(case.run(other), case.plain())
        return worst(found)

    return body


def copied_with_patch(how: Apply) -> Any:
    """Both copied together: the copy of the patch has the report of the copy."""

    def body(case: Case) -> Exact:
        with case.patch() as patch:
            model, own = how((case.model, patch))
            found = case.exact(case.run(model))
            assert own.report().corrected_calls
            assert not patch.report().corrected_calls
            own.remove()
            assert torch.equal(case.run(model), case.plain())
            return worst([found, case.exact(case.run())])

    return body


def averaged(case: Case) -> Exact:
    """A moving average of weights: a deep copy that gets other weights."""
    twin = case.new_model()
    for each in (twin, case.model):
        for weight in each.parameters():
            weight.requires_grad_(False)

    def average(model: Any) -> Any:
        mean = torch.optim.swa_utils.AveragedModel(model)
        for factor in (1.0, 1.3):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(factor)
            mean.update_parameters(model)
        return mean.module

    plain, expected = case.of(average(twin))
    assert difference(plain, case.plain()) > 1e-3
    with case.patch():
        return Exact(difference(case.run(average(case.model)), expected), difference(plain, expected))


def of_diffusers_ema(case: Case) -> Exact:
    """EMAModel.copy_to: its weights go into the patched model."""
    from diffusers.training_utils import EMAModel

    twin = case.new_model()
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(1.1)
    mean = EMAModel(twin.parameters())
    plain, expected = case.of(twin)
    with case.patch():
        mean.copy_to(case.model.parameters())
        return Exact(difference(case.run(), expected), difference(plain, expected))


def saved_pretrained(case: Case) -> Exact:
    """Saved under the patch, in the format of diffusers; what is loaded has no patch, and gets one."""
    with tempfile.TemporaryDirectory() as folder, case.patch():
        assert set(case.model.state_dict()) == set(case.new_model().state_dict())
        case.model.save_pretrained(folder)
        loaded = type(case.model).from_pretrained(folder).eval()
        assert torch.equal(case.run(loaded), case.plain())
        with case.patch(loaded):
            return worst([case.exact(case.run(loaded)), case.exact(case.run())])


def saved_after(case: Case) -> Exact:
    """Saved whole once the patch was removed: nothing of freeloc is in the file."""
    with case.patch():
        found = case.exact(case.run())
    data = pickle.dumps(case.model)
    assert b"freeloc.interception" not in data
    assert torch.equal(case.run(pickle.loads(data)), case.plain())
    return found


def with_others(apply: Apply, changes: bool = False) -> Any:
    """A deep copy of a patched model that something of another library is on."""

    def body(case: Case) -> Exact:
        if changes:
            twin = case.new_model()
            apply(twin)
            plain, expected = case.of(twin)
        else:
            plain, expected = case.plain(), case.expected()
        patch = case.patch() if case.order == "after" else None
        apply(case.model)
        with patch or case.patch():
            case.run()
            other = copy.deepcopy(case.model)
            found = [case.run(other), case.run()]
        return Exact(max(difference(each, expected) for each in found), difference(plain, expected))

    return body


def with_cache(apply: Apply) -> Any:
    """Six steps of the copy under its cache, and of the model under its own, in turn."""

    def body(case: Case) -> Exact:
        def steps(model: Any) -> Any:
            return caches.sample(model, case.inputs(batch=1))

        plain_twin, twin = case.new_model(), case.new_model()
        apply(plain_twin)
        plain = steps(plain_twin)
        with case.oracle(twin):
            apply(twin)
            expected = steps(twin)
        patch = case.patch() if case.order == "after" else None
        apply(case.model)
        with patch or case.patch():
            other = copy.deepcopy(case.model)
            found = [steps(other), steps(case.model)]
        return Exact(max(difference(each, expected) for each in found), difference(plain, expected))

    return body


# In a deep copy, the hooks of diffusers stay those of the first model, and run its modules.
WITHOUT_AUDIO = ("wan", "hunyuan-video", "cogvideox-1.5")
CELLS = [
    Cell("copy.deepcopy(model)", copied(deep), quick=("wan",)),
    Cell("pickle.loads(pickle.dumps(model))", copied(pickled)),
    Cell("torch.save(model), torch.load", copied(saved_whole)),
    Cell("copy.deepcopy((model, patch))", copied_with_patch(deep)),
    Cell("pickle of (model, patch)", copied_with_patch(pickled)),
    Cell("AveragedModel(model)", averaged),
    Cell("EMAModel.copy_to(model)", of_diffusers_ema),
    Cell("save_pretrained under a patch, from_pretrained", saved_pretrained),
    Cell("pickled after the patch was removed", saved_after),
    Cell("deepcopy under cpu_offload", with_others(OFFLOADS["cpu_offload"]), WITHOUT_AUDIO, ORDERS),
    *[
        Cell(f"deepcopy under {name}", with_others(OFFLOADS[name]), expects=Fails("cannot pickle 'module' object"))
        for name in ("groups of leaves", "groups of blocks")
    ],
    Cell(
        "deepcopy under layerwise casting",
        with_others(cast(torch.float8_e4m3fn), True),
        orders=ORDERS,
        expects=Fails("must have the same dtype"),
    ),
    Cell("deepcopy with LoRA", with_others(add, True), orders=ORDERS),
    Cell("deepcopy with compile_repeated_blocks", with_others(repeated()), families=("wan",), orders=ORDERS),
    Cell(
        "deepcopy with FirstBlockCache",
        with_cache(caches.first_block),
        WITHOUT_AUDIO,
        ORDERS,
        expects=Fails("No cache context is set"),
    ),
    Cell(
        "deepcopy with PyramidAttentionBroadcast", with_cache(caches.pyramid), ("wan", "ltx-2"), ORDERS, tolerance=1e-4
    ),
]
