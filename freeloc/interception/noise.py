"""The initial noise of a method that has one of its own, such as FreeNoise: how it is made, and that it was made."""

import hashlib
import math
import sys
import threading
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freeloc.adapter.spec import Adapter
from freeloc.errors import PatchError
from freeloc.interception import checkpoints, context
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Method
from freeloc.registry import registry
from freeloc.report import NoiseReport

VIDEO_AXES = (0, 1, 2, 3, 4)
"""The order (batch, channels, frames, height, width), in which methods get noise."""

LEAST_VALUES = 64
"""Fewer values of a frame do not tell noise from a picture."""

Place = tuple[int, str, int]
"""A thread, and a function that it runs: its file and first line."""


class Ready(NamedTuple):
    """Noise that starts a video: its latent frames, and the reference images before and after them."""

    video: int
    first: int = 0
    last: int = 0


class InitialNoise:
    """The noise that the videos of a patched pipeline start from, and the calls for which it was prepared.

    Args:
        method: the method whose noise it is.
        trained_frames: latent frames of the clips that the model was trained on.
        axes: order of the axes of the pipeline's latents that gives `VIDEO_AXES`: see `axes_of`.
    """

    def __init__(self, method: Method, trained_frames: int, axes: tuple[int, ...] = VIDEO_AXES) -> None:
        self.method, self.trained_frames, self.axes = method, trained_frames, axes
        self.report = NoiseReport(method.name, trained_frames)
        self.is_removed = False
        self._ready: dict[Place | None, set[Ready]] = {}
        self._problems: dict[Place | None, str] = {}

    def of(self, noise: Tensor, patch_frames: int, first: int, last: int) -> tuple[Tensor, Ready]:
        """The noise that a video starts from, instead of that of the pipeline. Up to the trained length it is the same.

        Each sample is prepared by itself. The generator that the method gets is seeded with the SHA-256 of the sample's
        frames up to the trained length, so the same noise always gives the same result.

        Args:
            noise: the pipeline's, of 5 axes in its own order.
            patch_frames: frames of noise for each latent frame that the transformer counts: its patch size in time.
            first, last: reference images on its axis of frames. Their noise stays where it is.

        Raises:
            PatchError: if the method returns noise of another shape.
        """
        video = noise.permute(self.axes)
        start, end = first * patch_frames, video.shape[2] - last * patch_frames
        ready = Ready(math.ceil(video.shape[2] / patch_frames) - first - last, first, last)
        if ready.video <= self.trained_frames:
            return noise, ready
        window = self.trained_frames * patch_frames
        made = [self._of_sample(sample, window) for sample in video[:, :, start:end].split(1)]
        whole = torch.cat([video[:, :, :start], torch.cat(made), video[:, :, end:]], dim=2)
        back = sorted(range(5), key=self.axes.__getitem__)
        return whole.permute(back).contiguous(), ready

    def _of_sample(self, noise: Tensor, window: int) -> Tensor:
        kept = noise[:, :, :window].detach().cpu().contiguous()
        digest = hashlib.sha256(kept.view(torch.uint8).numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        assert self.method.noise is not None
        made = self.method.noise(noise, window, generator)
        if not isinstance(made, Tensor) or made.shape != noise.shape:
            found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise PatchError(f"expected noise of shape {tuple(noise.shape)} from '{self.method.name}', found {found}")
        return made

    def note(self, caller: FrameType, ready: Collection[Ready], problem: str, is_given: bool) -> None:
        """Note for which lengths a call of ``prepare_latents`` has made noise, or why for none.

        A function of the pipeline that calls it samples with that noise; other callers may sample anywhere.
        """
        places: list[Place | None] = [*self._places(caller)]
        with context.lock:
            for place in places or [None]:
                before = set() if place else self._ready.get(None, set())
                self._ready[place] = {*ready, *before}
                self._problems[place] = problem
            if ready:
                longest = max(ready).video
                is_longer = longest > self.trained_frames
                (self.report.prepared if is_longer else self.report.within)[longest] += 1
                if is_longer and is_given:
                    self.report.given[longest] += 1

    def require(self, length: VideoLength) -> None:
        """Require that the running call is of a video that starts from this noise, if it is longer than in training.

        Raises:
            PatchError: if it does not. The message says how to prepare the noise.
        """
        is_within, trained = length.is_within(self.trained_frames), self.trained_frames
        if (is_within and length.spacing == 1) or checkpoints.in_backward():
            return
        places = [None, *self._places(sys._getframe(1), self._ready)]
        found = [ready for place in places for ready in self._ready.get(place, ()) if _holds(ready, length)]
        if not found and not is_within:
            problem = next((text for place in reversed(places) if (text := self._problems.get(place, ""))), "")
            raise PatchError(
                f"expected a video of {length.video} latent frames (trained: {trained}) to start from the initial "
                f"noise of '{self.method.name}', found that this noise was not prepared: "
                f"{problem or 'no prepare_latents of the patched pipeline has made its latents'}. "
                f"{by_hand(self.method, trained, self.axes)}"
            )
        own = length.trained_frames(trained)
        if own != trained and found and (not is_within or max(found).video > trained):
            raise PatchError(
                f"the noise of '{self.method.name}' was prepared with windows of {trained} latent frames, but the "
                f"frames of this video are {length.spacing:.4g} times as far apart as in training, so that the trained "
                f"length is {own}: generate at the frame rate of training. {by_hand(self.method, own, self.axes)}"
            )

    def _places(self, frame: FrameType | None, known: Collection[Place | None] | None = None) -> Iterator[Place]:
        """The running functions of the patched pipeline in this thread, the innermost first; with `known`, only those.

        The local variables of other functions are not read: Python would keep the tensors in them alive.
        """
        thread = threading.get_ident()
        while frame is not None:
            code = frame.f_code
            place = thread, code.co_filename, code.co_firstlineno
            if code.co_argcount and code.co_varnames[0] == "self" and (known is None or place in known):
                owner = frame.f_locals.get("self")
                own: Any = getattr(owner, "__dict__", {}).get("prepare_latents")
                if getattr(own, "noise", None) is self:
                    yield place
            frame = frame.f_back

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or pickle, without calls that are running; a registered method by name."""
        owners = registry().methods.owners.get(self.method.name, [])
        method = self.method.name if any(known is self.method for _, known in owners) else self.method
        anywhere = {place: ready for place, ready in self._ready.items() if place is None}
        return vars(self) | {"method": method, "_ready": anywhere, "_problems": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self.method, str):
            self.method = registry().methods.get(self.method)


def _holds(ready: Ready, length: VideoLength) -> bool:
    """Whether the frames of a call, which may be a part of the video, are those of this noise."""
    return ready.video >= length.video and (ready.first, ready.last) == (length.first, length.last)


def axes_of(adapter: Adapter) -> tuple[int, ...]:
    """The order of the axes of a pipeline's latents that gives `VIDEO_AXES`.

    It is that of the transformer's argument. Pipelines that pack latents to tokens draw them as `VIDEO_AXES` says.

    >>> from freeloc.discovery import adapters
    >>> {known.name: axes_of(known) for known in adapters() if known.name in ("cogvideox", "kandinsky5", "ltx")}
    {'cogvideox': (0, 2, 1, 3, 4), 'kandinsky5': (0, 4, 1, 2, 3), 'ltx': (0, 1, 2, 3, 4)}
    """
    axes = adapter.grid.axes.split()
    if len(axes) != 5 or not isinstance(adapter.grid.argument, str) or not {"f", "h", "w"} <= {*axes}:
        return VIDEO_AXES
    batch, channels = (axes.index(name) for name in axes if name not in ("f", "h", "w"))
    return batch, channels, *(axes.index(name) for name in "fhw")


def by_hand(method: Method, trained_frames: int, axes: tuple[int, ...] = VIDEO_AXES) -> str:
    """How sampling code prepares the noise of a method."""
    name = getattr(method.noise, "__qualname__", "<")
    plain = name.isidentifier()
    first = f"from {method.noise.__module__} import {name}; " if plain else ""
    video, back = "latents", ""
    if axes != VIDEO_AXES:
        order = sorted(range(5), key=axes.__getitem__)
        video, back = (f"latents.permute({', '.join(map(str, axes))})", f".permute({', '.join(map(str, order))})")
    return (
        "To prepare it yourself, where the latents are made, from latents "
        f"({', '.join(_NAMES[axes.index(place)] for place in range(5))}), before they are packed:\n"
        f"    {first}latents = {name if plain else 'method.noise'}({video}, {trained_frames}, generator){back}\n"
        "    freeloc.patch(..., noise_prepared=True)"
    )


_NAMES = ("batch", "channels", "frames", "height", "width")


def departure_from_noise(latents: Tensor) -> str:
    """Why latents, (batch, channels, frames, height, width), are not normal noise of one scale; empty if they are.

    In each frame, the mean, the standard deviation and the correlation of neighbours must be within 6 standard errors
    of those of white noise. So noise of any scale passes, and frames that an image was put into do not.

    >>> noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> departure_from_noise(noise), departure_from_noise(noise.cumsum(-1))
    ('', 'of frame 0, the correlation of neighbours is 0.87, not 0')
    """
    values = latents.detach().float().movedim(2, 1)  # (batch, frames, channels, height, width)
    scale = float(values.std())
    if not 0 < scale < math.inf:
        return f"their standard deviation is {scale:.2g}"
    values = values / scale
    across, down = values[..., 1:] * values[..., :-1], values[..., 1:, :] * values[..., :-1, :]
    measures = {
        "mean": (values.mean((2, 3, 4)), 0, values[0, 0].numel()),
        "standard deviation over that of all": (values.flatten(2).std(2), 1, 2 * values[0, 0].numel()),
        "correlation of neighbours": (across.mean((2, 3, 4)), 0, across[0, 0].numel()),
        "correlation of neighbours in height": (down.mean((2, 3, 4)), 0, down[0, 0].numel()),
    }
    for name, (found, expected, count) in measures.items():
        far = ((found - expected).abs() > 6 / max(count, 1) ** 0.5).any(0).nonzero().flatten().tolist()
        if far and count >= LEAST_VALUES:
            worst = found[:, far[0]]
            value = float(worst[(worst - expected).abs().argmax()])
            return f"of frame {far[0]}, the {name} is {value:.2g}, not {expected}"
    return ""
