"""Every video transformer and video ControlNet of diffusers is adapted, or refused with a reason."""

import inspect
import re

import pytest
import torch
from diffusers.models import controlnets, transformers
from torch import nn

import freeloc
from freeloc.registry import registry

THINGS = [thing for _, _, thing in registry().adapters.things()]
REFUSED = {thing.name: thing for thing in THINGS if isinstance(thing, freeloc.adapter.Refusal)}

VIDEO = re.compile(
    "Video|3D|Wan|Cosmos|Kandinsky|LTX|Hunyuan|Mochi|Allegro|Latte|EasyAnimate|SkyReels|Sana.*Video|SanaWM|Motif"
    "|Helios|AnyFlow|MiniMax|ConsisID|ChronoEdit"
)
NOT_VIDEO = {
    "HunyuanDiT2DControlNetModel": "images",
    "HunyuanDiT2DMultiControlNetModel": "images",
    "HunyuanDiT2DModel": "images",
    "HunyuanImageTransformer2DModel": "images",
    "JoyImageEditPlusTransformer3DModel": "images",
    "JoyImageEditTransformer3DModel": "images",
    "MiniMaxMusic3RVQDepthDecoder": "music",
    "MiniMaxMusic3Transformer1DModel": "music",
    "StableAudio3DiTModel": "sound",
}


def of_diffusers():
    """Every transformer of diffusers that may be one of video, and every ControlNet, by name."""
    found = (vars(transformers) | vars(controlnets)).items()
    return {
        name: cls for name, cls in found if inspect.isclass(cls) and VIDEO.search(name) and issubclass(cls, nn.Module)
    }


@pytest.mark.parametrize("name", list(REFUSED))
def test_patching_a_refused_model_raises_the_reason(name):
    refusal = REFUSED[name]
    module, _, name = refusal.classes[0].rpartition(".")
    # Of other projects, which are not installed, a class of this name.
    other = type(name, (nn.Module,), {"__module__": module.replace("*", "/folder")})
    cls = getattr(transformers, name) if module.startswith("diffusers.") else other
    with torch.device("meta"):
        model = cls()
    with pytest.raises(
        freeloc.errors.AdapterError, match=re.escape(f"{cls.__name__} cannot be corrected: {refusal.reason}")
    ):
        freeloc.patch(model, method="vrpr+tsa")
    assert re.search(r"[Uu]se |itself|leave", refusal.reason), "it says what to do instead"


def test_every_video_transformer_of_diffusers_is_adapted_or_refused():
    described = {path for thing in THINGS for path in thing.classes}
    known = {name for name, cls in of_diffusers().items() if f"{cls.__module__}.{name}" in described}
    assert set(of_diffusers()) - known - set(NOT_VIDEO) == set()
    assert not known & set(NOT_VIDEO)


def test_every_named_class_still_exists():
    described = {path for thing in THINGS for path in thing.classes if path.startswith("diffusers.")}
    exported = {f"{cls.__module__}.{cls.__qualname__}" for cls in of_diffusers().values()}
    assert described <= exported
    assert set(NOT_VIDEO) <= set(of_diffusers())
