"""Places of a clip: which axes of its latents are frames, rows and columns, and how much each place moves."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import einops
import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.adapter.reader import GridReader
from freeloc.adapter.spec import Adapter
from freeloc.errors import LayoutError, ProbeError
from freeloc.probing.calls import Call

NAMES = ("b", "c", "f", "h", "w")
"""Names of axes: batch, channels, frames, rows, columns."""

STILL = 1e-6
"""Clips whose motion and detail are a smaller share of their root mean square than this stand still: it is rounding."""


class Axes(NamedTuple):
    """The axes of one sample of a transformer's video, without the batch.

    Attributes:
        names: einops names, ``"c f h w"``; ``"(f h w) c"`` for a sequence of tokens.
        sizes: the numbers of frames ``f``, rows ``h`` and columns ``w``, where the names alone do not give them.
    """

    names: str
    sizes: Mapping[str, int] = {}

    @property
    def channels(self) -> int:
        """Place of the channels in a batch of samples: 1 for ``"c f h w"``."""
        return 1 + _outer(self.names).index("c")


def motion_weight(latents: Tensor, axes: str = "c f h w", **sizes: int) -> Tensor:
    """Weight of each place of clean latents: high where they move and have detail. Its mean over a clip is 1.

    The weight is sqrt(motion x detail), divided by its mean:

    - motion: root mean square of the difference to the frames before and after, over channels and over 3 x 3 places;
    - detail: standard deviation within 3 x 3 places, root mean square over channels.

    So what stands still has no weight, and neither has a change of light on a plain area. In the whole-frame mean of a
    loss, small moving things hardly count. A clip in which nothing moves has the weight 1 everywhere.

    >>> import torch
    >>> latents = torch.zeros(4, 3, 8, 8)  # (channels, frames, height, width)
    >>> latents[:, 0, 2, 2] = latents[:, 1, 2, 3] = latents[:, 2, 2, 4] = 1.0  # a dot that moves right
    >>> weight = motion_weight(latents)
    >>> weight.shape, round(float(weight.mean()), 4), float(weight[0, 1, 2, 3]) > 3, float(weight[0, 1, 7, 7])
    (torch.Size([4, 3, 8, 8]), 1.0, True, 0.0)

    Args:
        latents: clean latents of one clip, or of several with a batch axis ``b``. Any number of channels.
        axes: einops names of their axes, of `NAMES`; ``"(f h w) c"`` for a sequence of tokens.
        sizes: numbers that the axes need, as in einops: ``f=8, h=2, w=3`` for tokens.

    Returns:
        float32 weights of the shape of the latents, the same in all channels of a place.

    Raises:
        ProbeError: if the latents do not have these axes.
    """
    names = axes.replace("(", " ").replace(")", " ").split()
    if sorted(set(names) | {"b"}) != sorted(NAMES) or len(set(names)) < len(names):
        raise ProbeError(f"expected axes of {', '.join(NAMES)}, each once (b may be left out), found '{axes}'")
    batch = "b" if "b" in names else "1"
    try:
        clips = einops.rearrange(latents.double(), f"{axes} -> {batch} c f h w", **sizes)
    except einops.EinopsError as error:
        raise ProbeError(
            f"expected latents with the axes '{axes}'{f' of sizes {sizes}' if sizes else ''}, found "
            f"{tuple(latents.shape)}"
        ) from error
    weight = (_motion(clips) * _detail(clips)).sqrt()  # (batch, frames, height, width)
    mean = weight.mean(dim=(1, 2, 3), keepdim=True)
    moves = mean > STILL * clips.square().mean(dim=(1, 2, 3, 4))[:, None, None, None].sqrt()
    weight = torch.where(moves, weight / mean, 1.0)
    whole = weight[:, None].expand_as(clips).float()
    found: Tensor = einops.rearrange(whole, f"{batch} c f h w -> {axes}", **sizes)
    return found


def axes_of(call: Call, adapter: Adapter, sample: Tensor, axes: str | None = None) -> Axes:
    """The axes of one sample of the transformer's video: as given, else as the adapter says.

    Where the adapter says nothing about the video itself: ``"c f h w"`` for four axes, ``"(f h w) c"`` for two.

    >>> import torch
    >>> from freeloc.discovery import find_adapter
    >>> from freeloc.tiny.model import load_transformer
    >>> transformer = load_transformer()
    >>> axes_of(Call(transformer, {}), find_adapter(transformer), torch.zeros(3, 24, 20, 28)).names
    'c f h w'

    Args:
        call: a recorded call of the transformer.
        adapter: the model's adapter.
        sample: latents of one clip, without the batch.
        axes: einops names, which override those of the adapter.

    Raises:
        ProbeError: if the sample has other axes, or the sizes of a sequence of tokens are not known.
    """
    described = adapter.grid.axes.removeprefix("b ") if _holds_video(adapter) else "c f h w"
    names = axes or {4: described, 2: "(f h w) c"}.get(sample.ndim, "")
    if len(_outer(names)) != sample.ndim or "c" not in _outer(names):
        raise ProbeError(
            f"expected clips with the axes '{names or 'c f h w'}', found the shape {tuple(sample.shape)}: give "
            "each clip without its batch, or Loss(axes=...), the einops names of channels c, frames f, rows h and "
            "columns w, such as 'f c h w'"
        )
    if "(" not in names:
        return Axes(names)
    sizes = _grid(call, adapter)
    if sizes["f"] * sizes["h"] * sizes["w"] not in sample.shape:
        raise ProbeError(
            f"expected clips of {sizes['f']} x {sizes['h']} x {sizes['w']} tokens, as the run calls the model with, "
            f"found the shape {tuple(sample.shape)}"
        )
    return Axes(names, sizes)


def argument_of(adapter: Adapter) -> str:
    """Name of the transformer's argument that holds the noisy video: as the adapter says, else ``hidden_states``.

    >>> from freeloc.discovery import adapters
    >>> [argument_of(adapter) for adapter in adapters() if adapter.name in ("wan", "mochi")]
    ['hidden_states', 'hidden_states']
    """
    return str(adapter.grid.argument) if _holds_video(adapter) else "hidden_states"


def _holds_video(adapter: Adapter) -> bool:
    """Whether the argument that the grid is read from is the video, with an axis for each of `NAMES`."""
    grid = adapter.grid
    named = sorted(grid.axes.split()) == sorted(NAMES) and grid.axes.startswith("b ")
    return named and grid.of == "transformer" and isinstance(grid.argument, str)


def _grid(call: Call, adapter: Adapter) -> dict[str, int]:
    """Latent frames, rows and columns of tokens in a call."""
    if adapter.grid.of != "transformer":
        raise ProbeError(
            f"expected clips with axes for frames, rows and columns, found a sequence of tokens: the adapter "
            f"{adapter.name} does not say how many of each a call of the transformer has"
        )
    reader = GridReader(adapter, call.model, call.model)
    try:
        grid = reader.of_model(call.model, reader.given((), call.arguments)).grid
    except LayoutError as error:
        raise ProbeError(str(error)) from error
    return dict(zip("fhw", grid, strict=True))


def _outer(names: str) -> list[str]:
    """The axes of a tensor: ``"(f h w) c"`` are two, ``f h w`` and ``c``."""
    return [part.strip("()") for part in re.findall(r"\([^)]*\)|\w+", names)]


def _motion(clips: Tensor) -> Tensor:
    """Root mean square difference to the neighbouring frames, (batch, frames, height, width)."""
    change = (clips[:, :, 1:] - clips[:, :, :-1]).square().mean(dim=1)
    both = F.pad(change, (0, 0, 0, 0, 1, 0)) + F.pad(change, (0, 0, 0, 0, 0, 1))
    neighbours = both.new_full((both.shape[1], 1, 1), 2.0)
    neighbours[0] = neighbours[-1] = 1.0
    return _around(both / neighbours).sqrt()


def _detail(clips: Tensor) -> Tensor:
    """Standard deviation within 3 x 3 places, root mean square over channels, (batch, frames, height, width)."""
    centred = clips - clips.mean(dim=(3, 4), keepdim=True)  # or rounding would look like detail
    frames = centred.transpose(1, 2)  # (batch, frames, channels, height, width)
    variance = _around(frames.square()) - _around(frames).square()
    return variance.clamp(min=0).mean(dim=2).sqrt()


def _around(values: Tensor) -> Tensor:
    """Mean over 3 x 3 places of the last two axes."""
    flat = values.flatten(0, -3)[:, None]
    return F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False).view_as(values)
