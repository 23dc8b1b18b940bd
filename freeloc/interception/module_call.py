"""What one call of an attention module says: its token grid, its text tokens, and how far each frame is rotated."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from freeloc.adapter.paths import argument_at, with_argument
from freeloc.adapter.reader import Signature, count_of
from freeloc.adapter.site import AttentionSite
from freeloc.adapter.tables import tables_in
from freeloc.attention.layer_plan import LayerPlan
from freeloc.attention.layout import TokenLayout
from freeloc.errors import LayoutError
from freeloc.interception import context, parallel
from freeloc.interception.context import ForwardContext, Grid, Read
from freeloc.interception.patched import OF_MODEL, PatchedModel
from freeloc.interception.rotation import Rotation, TableRows
from freeloc.plans.length import VideoLength


class ModuleCall(NamedTuple):
    """What was read from one call of an attention module."""

    grids: list[Grid]
    """One grid for the batch, or one for each sample."""
    lengths: list[VideoLength]
    """The length of the video on each grid."""
    text: list[int]
    """Text tokens of each kernel call, the last one for all further calls."""
    rotation: Rotation
    refused: str = ""
    """Why it cannot be corrected; empty if it can."""
    is_longer: bool = False
    """Whether there are more tokens than the model was trained on. Then it is refused at any length."""
    share: parallel.Share | None = None
    """Whose tokens the call has, if several processes share the sequence."""
    arguments: context.Arguments | None = None
    """Its arguments, with copies of lists; None if there are none, since only lists are cleared to save memory."""


class Which(NamedTuple):
    """What determines the plan and the layout of a kernel call, beside the layer."""

    grid: Grid
    length: VideoLength
    text: int
    rotation: Rotation
    share: parallel.Share | None = None
    """Whose heads the call has, if several processes share the layer."""


class Ready(NamedTuple):
    """The plan and layout of a call, which depend only on its sizes."""

    plan: LayerPlan
    layout: TokenLayout
    density: float
    frames: int
    """Latent frames of the video, without references."""
    gathered: parallel.Share | None
    """Set if video and text of several processes alternate in the sequence."""


class CallReader:
    """Reads the calls of one attention module."""

    def __init__(self, model: PatchedModel, site: AttentionSite, module: nn.Module) -> None:
        self.model = model
        self.site = site
        self.kernels = site.kernels
        signature = Signature(module)
        self._names, self.given = signature.names, signature.given

    def see(self, forward: ForwardContext, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> ModuleCall:
        """What a call says.

        Raises:
            LayoutError: if the grid cannot be read.
        """
        model, read = self.model, forward.read or self.model.read_running(forward)
        given = self.given(args, kwargs)
        share = self.share(module, given, read) if dist.is_available() and dist.is_initialized() else None
        text = self.text_tokens(read, given, share)
        forward.text = max(forward.text, *text)
        grids = [read.grid] if read.grid is not None else self._grids_of_samples(module, args, kwargs)
        argument = None if not model.tables else self._value(given, model.tables)
        known = forward.rotation
        if known is None or not _same(known[0], argument) or known[1][0] != grids:
            tables = self.tables(argument) if model.correction.checked else None
            if tables and tables[0].is_meta:
                tables = None  # they hold no numbers
            rotation = self.rotation(read, tables, grids[0], text[-1], share)
            known = argument, (grids, [model.length(read, grid, rotation) for grid in grids], rotation)
            forward.rotation = known
        _, lengths, rotation = known[1]
        other = self.other_tokens(read, given, grids[0], text, share)
        is_longer = bool(other) and self._exceeds(given, grids[0], share)
        refused = read.refused or other or rotation.refused
        return ModuleCall(grids, lengths, text, rotation, refused, is_longer, share, _kept(args, kwargs))

    def share(self, module: nn.Module, given: Mapping[str, Any], read: Read) -> parallel.Share | None:
        """Whose tokens a call has, if several processes share the sequence."""
        hidden = self.hidden_states(given)
        tokens = None if hidden is None else hidden.shape[1]
        video = 0 if read.grid is None or self.site.joint else self.video_tokens(read.grid)
        return parallel.sequence_share(self.model.adapter.context_parallel, module, tokens, video)

    def tables(self, argument: Any) -> list[Tensor]:
        """The rotary tables in an argument; empty if the model has none, or they cannot be read."""
        rope = self.model.adapter.rope
        return tables_in(rope, argument) if self.model.tables and rope is not None else []

    def text_tokens(self, read: Read, given: Mapping[str, Any], share: parallel.Share | None) -> list[int]:
        """Text tokens of each kernel call. The module has an equal part of them if several processes share them."""
        site = self.site
        if site.text == "none":
            return [0]
        if site.text_mask and isinstance(mask := self._value(given, site.text_mask), Tensor):
            counts: list[int] = mask.bool().sum(dim=-1).tolist()
            return counts
        name = site.text_tokens.removeprefix(OF_MODEL)
        if name != site.text_tokens:
            return [read.text_tokens[name]]
        return [count_of(self._value(given, name)) * (share.degree if share else 1)]

    def _grids_of_samples(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> list[Grid]:
        model = self.model
        if model.adapter.grid.submodule:
            raise LayoutError(
                f"{model.adapter.grid.submodule} of {type(model.module).__name__} has not run, from which its grid is "
                f"read (adapter '{model.adapter.name}')"
            )
        reader = model.reader
        return [tuple(grid) for grid in reader.of_samples(module, reader.given(args, kwargs)).tolist()]

    def rotation(
        self, read: Read, tables: list[Tensor] | None, grid: Grid, text: int, share: parallel.Share | None
    ) -> Rotation:
        """How far the model rotates each latent frame; without tables, as the adapter describes."""
        model, step = self.model, read.positions_per_frame
        rope = model.adapter.rope
        if grid[0] <= read.first + read.last:
            raise LayoutError(
                f"expected more latent frames than the {read.first + read.last} of reference images, found {grid[0]}: "
                "look at reference_frames"
            )
        if model.rope is None or rope is None or tables is None:
            return Rotation(step)
        if not rope.tables:
            return Rotation(step, model.changed_weights())
        if not tables:
            return Rotation(step, None, "its attention was called without rotary tables, with which it was trained")
        if read.refused:
            return Rotation(step)
        tokens = self.video_tokens(grid)
        length, per_frame = VideoLength(grid[0], read.first, read.last), tokens // grid[0]
        part = share.part(tokens) if share else range(tokens)
        own_text = text // share.degree if share else text
        padding = max(share.tokens - len(part), 0) if share else 0
        found = model.rotation(tables, step, TableRows(length, per_frame, 0, part, padding))
        if found.refused and share is not None:  # a library may rotate once it has exchanged tokens for heads
            whole = model.rotation(tables, step, TableRows(length, per_frame, 0, range(tokens)))
            found = found if whole.refused else whole
        if found.refused and text:  # the tables may have rows of the text too
            first = own_text if self.site.text == "first" else 0
            joint = model.rotation(tables, step, TableRows(length, per_frame, first, part, own_text))
            return found if joint.refused else joint
        return found

    def video_tokens(self, grid: Grid) -> int:
        """Tokens of the video in a sequence."""
        return math.prod(grid) if self.site.tokens == "f h w" else grid[0]

    @staticmethod
    def _value(given: Mapping[str, Any], name: str) -> Any:
        return given[name] if name in given else argument_at(given, name)

    @property
    def _hidden_states_name(self) -> str:
        return self.site.hidden_states or self._names[0]

    def hidden_states(self, given: Mapping[str, Any]) -> Tensor | None:
        """The argument with the video's tokens, (batch, tokens, ...); None if there is no such tensor."""
        found = self._value(given, self._hidden_states_name)
        return found if isinstance(found, Tensor) and found.ndim in (3, 4) else None

    def with_hidden_states(
        self, hidden_states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a call with other tokens."""
        name = self._hidden_states_name
        root = name.partition(".")[0]
        if root in kwargs:
            return args, with_argument(kwargs, name, hidden_states)
        place = self._names.index(root)
        argument = with_argument({root: args[place]}, name, hidden_states)[root]
        return (*args[:place], argument, *args[place + 1 :]), kwargs

    def other_tokens(
        self, read: Read, given: Mapping[str, Any], grid: Grid, text: list[int], share: parallel.Share | None = None
    ) -> str:
        """How the number of tokens differs from the grid; empty if it does not."""
        if self.model.adapter.grid.of == "attention" or read.refused or not self.model.correction.checked:
            return ""
        hidden, video = self.hidden_states(given), self.video_tokens(grid)
        if hidden is None:
            name = self._hidden_states_name
            kind = type(argument_at(given, name)).__name__
            return f"expected (batch, tokens, channels) as its argument '{name}', found {kind}"
        expected = video + (text[-1] if self.site.joint else 0)
        if share is not None:
            expected = (share.tokens or len(share.part(video))) + (text[-1] // share.degree if self.site.joint else 0)
        if hidden.shape[1] == expected:
            return ""
        frames, height, width = grid
        size = f"{frames} latent frames" + (f" of {height} x {width}" if self.site.tokens == "f h w" else "")
        and_text = f" and {text[-1]} of text" if self.site.joint else ""
        divided = "" if share is None else f", divided among {share.degree} processes"
        return (
            f"expected {expected} tokens, {size} = {video}{and_text}{divided}, found {hidden.shape[1]}: the model has "
            "added or dropped tokens, such as history, keyframes or merged tokens"
        )

    def _exceeds(self, given: Mapping[str, Any], grid: Grid, share: parallel.Share | None) -> bool:
        trained, hidden = self.model.correction.trained_frames, self.hidden_states(given)
        most = trained * (self.video_tokens(grid) // grid[0])
        return hidden is None or hidden.shape[1] * (share.degree if share else 1) > most


def _kept(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> context.Arguments | None:
    """Arguments that a module cannot change by clearing a list; None if none of them is a list."""
    if not any(type(value) is list for value in (*args, *kwargs.values())):
        return None
    copies = [list(value) if type(value) is list else value for value in (*args, *kwargs.values())]
    return tuple(copies[: len(args)]), dict(zip(kwargs, copies[len(args) :], strict=True))


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same object, or pairs of the same objects."""
    pairs = type(one) is type(other) is tuple and len(one) == len(other)
    return one is other or (pairs and all(a is b for a, b in zip(one, other, strict=True)))
