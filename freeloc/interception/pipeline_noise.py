"""PreparedLatents: stands for `prepare_latents` of a pipeline, and replaces the noise that it draws.

Noise is changed where it is drawn, before an image or a video is mixed in, and before it is packed to tokens. So
nothing but noise is ever changed.
"""

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from freeloc.adapter.reader import references_of
from freeloc.errors import PatchError
from freeloc.interception.context import Read
from freeloc.interception.noise import InitialNoise, Ready, departure_from_noise
from freeloc.interception.patched import PatchedModel

NAME = "prepare_latents"
"""The function of a pipeline of diffusers that draws the initial noise."""

THROUGH = ("randn_tensor", "__torch_function__", "<listcomp>", "<genexpr>")
"""Functions through which `prepare_latents` draws. `sample` of a VAE's posterior draws through others."""


class PreparedLatents:
    """In place of a pipeline's `prepare_latents`: calls it, and makes the noise that it draws that of the method.

    Args:
        pipeline: the patched pipeline.
        noise: the noise of the method.
        model: a patched transformer of the pipeline, which counts frames and reference images.
    """

    def __init__(self, pipeline: Any, noise: InitialNoise, model: PatchedModel) -> None:
        self.pipeline, self.noise, self.model = pipeline, noise, model
        self._own = vars(pipeline).get(NAME)
        """The pipeline's attribute before the patch; None if the function is that of its class."""

    def take_off(self) -> None:
        """Leave the pipeline as it was, and change nothing any more. Idempotent."""
        self.noise.is_removed = True
        attributes = vars(self.pipeline)
        if attributes.get(NAME) is self:
            if self._own is None:
                del attributes[NAME]
            else:
                attributes[NAME] = self._own

    @property
    def original(self) -> Callable[..., Any]:
        """The function whose place this takes."""
        if self._own is not None:
            own: Callable[..., Any] = self._own
            return own
        bound: Callable[..., Any] = getattr(type(self.pipeline), NAME).__get__(self.pipeline)
        return bound

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function. The noise that it draws, or noise that is given as `latents`, is changed on the way."""
        if self.noise.is_removed:  # by `freeloc.unpatch` of a transformer, which does not know the pipeline
            self.take_off()
            return self.original(*args, **kwargs)
        call = _Call(self, sys._getframe(1))
        args, kwargs = call.with_given(args, kwargs)
        with _Drawn(call.changed):
            result = self.original(*args, **kwargs)
        call.note()
        return result


def put_on(pipeline: object, noise: InitialNoise | None, model: PatchedModel) -> PreparedLatents | None:
    """Put a `PreparedLatents` in place of the pipeline's function, if there is noise to prepare.

    Raises:
        PatchError: if that of an earlier patch, of a transformer that the pipeline has lost, is still there.
    """
    earlier = getattr(pipeline, NAME, None)
    if isinstance(earlier, PreparedLatents):
        if not earlier.noise.is_removed:
            raise PatchError(
                f"{NAME} of this {type(pipeline).__name__} is that of an earlier patch, whose transformer is no longer "
                "in the pipeline: call remove() on that Patch, or freeloc.unpatch on this pipeline"
            )
        earlier.take_off()
    if noise is None:
        return None
    latents = PreparedLatents(pipeline, noise, model)
    vars(pipeline)[NAME] = latents
    return latents


def take_off_latents(pipeline: object, noise: InitialNoise | None = None) -> None:
    """Give a pipeline its own function back, if that of a patch is in its place: that of this noise, or any."""
    latents = getattr(pipeline, NAME, None)
    if isinstance(latents, PreparedLatents) and (noise is None or latents.noise is noise):
        latents.take_off()


class _Call:
    """One call of `prepare_latents`."""

    def __init__(self, latents: PreparedLatents, caller: FrameType) -> None:
        self._noise, self._caller, self._original = latents.noise, caller, latents.original
        model = latents.model
        self._patch_frames = model.adapter.patch_size(model.module)[0]
        counted = [known for known in model.references if not callable(known.frames)]
        first, last = model.correction.references or references_of(counted, model.module, {})[:2]
        read = model.with_references(Read(None, 1.0, first, last), caller, is_told=False)
        self._references = read.first, read.last
        self._ready: list[Ready] = []
        self._given: Ready | None = None
        self._problem = ""

    def changed(self, noise: Tensor) -> Tensor:
        """The noise of the method, from noise that the pipeline has drawn."""
        made, ready = self._noise.of(noise, self._patch_frames, *self._references)
        self._ready.append(ready)
        return made

    def with_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call, with changed `latents` if some are given and are noise."""
        try:
            bound = inspect.signature(self._original).bind(*args, **kwargs)
        except TypeError:  # the function itself raises it
            return args, kwargs
        given = bound.arguments.get("latents")
        if not isinstance(given, Tensor):
            return args, kwargs
        if given.ndim != 5:
            self._problem = (
                f"latents of shape {tuple(given.shape)} were given, in which frames cannot be told: give a generator"
            )
            return args, kwargs
        made, ready = self._noise.of(given, self._patch_frames, *self._references)
        if made is not given and (why := departure_from_noise(given.permute(self._noise.axes))):
            self._problem = f"the latents that were given are not noise alone, which could be shuffled: {why}"
            return args, kwargs
        self._given = ready
        bound.arguments["latents"] = made
        return bound.args, bound.kwargs

    def note(self) -> None:
        """Note what was prepared."""
        ready = self._ready or ([self._given] if self._given else [])
        name = getattr(self._original, "__qualname__", NAME)
        nothing = f"{name} drew no noise of 5 axes by torch.randn, and got none as latents="
        self._noise.note(self._caller, ready, "" if ready else self._problem or nothing, not self._ready)


class _Drawn(TorchFunctionMode):
    """Changes the noise that `prepare_latents` itself draws in this thread."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in (torch.randn, torch.randn_like) and out.ndim == 5 and _drawn_by(sys._getframe(1)) == NAME:
            return self._change(out)
        return out


def _drawn_by(frame: FrameType | None) -> str:
    """Name of the function that draws, in whose frame or below."""
    while frame is not None and frame.f_code.co_name in THROUGH:
        frame = frame.f_back
    return frame.f_code.co_name if frame is not None else ""
