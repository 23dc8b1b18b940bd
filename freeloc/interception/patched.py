"""PatchedModel: the state of a patched transformer, from patching to removal."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import Any

import torch
from torch import nn

from freeloc.adapter.kernel import SDPA
from freeloc.adapter.paths import argument_at
from freeloc.adapter.reader import GridReader, Signature, count_of, references_of
from freeloc.adapter.spec import Adapter
from freeloc.attention.backends import Backend
from freeloc.attention.devices import OnCpu
from freeloc.attention.layer_plan import LayerPlans
from freeloc.errors import AdapterError, LayoutError
from freeloc.interception import context
from freeloc.interception.compiled import NOTHING, Traced
from freeloc.interception.context import ForwardContext, Grid, Read
from freeloc.interception.noise import InitialNoise
from freeloc.interception.rotation import TOLERANCE, Rotation, TableRows, fit_rotation, rotation_steps
from freeloc.interception.run_by import submodule_of
from freeloc.interception.watch import Observer
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Plans
from freeloc.registry import registry
from freeloc.report import TransformerReport

OF_MODEL = "transformer."
"""Prefix of `AttentionSite.text_tokens` for an argument of the transformer."""

UNKNOWN_REFERENCES = (
    "reference images: not known outside a pipeline, counted as none; say patch(..., reference_frames=...)"
)
"""The note on forward passes in which the number of reference images could not be read."""

MOST_ROTATIONS = 16
"""Largest number of sets of frequencies whose plans are kept."""


@dataclass
class Correction:
    """The plans for the layers of a transformer, and how they are computed.

    Args:
        label: name of the profile, for messages.
        method_of: layer -> name of its policy or method.
        plan: (layer, length of the video) -> the plans of the layer.
        backends: backends in order of preference; the first that supports a call computes it.
        observer: function that gets every attention call. With an observer, all layers are intercepted.
        checked: whether calls are checked; if not, they are taken to be as the adapter describes.
        trained_frames: latent frames of the clips that the model was trained on; 0 if it is not known.
        references: reference images before and after the frames of the video, if the user has told their number.
        allowed: arguments of the transformer that are not refused, although its grid says so (`Beside.argument`).
        needs_all_heads: whether calls with a part of the heads, in models that several processes share, are an error.
        noise: what videos beyond the trained length must start from, if a method has noise of its own.
    """

    label: str
    method_of: Callable[[int], str]
    plan: Callable[[int, VideoLength], Plans]
    backends: Sequence[Backend]
    observer: Observer | None = None
    checked: bool = True
    trained_frames: int = 0
    references: tuple[int, int] | None = None
    allowed: frozenset[str] = frozenset()
    needs_all_heads: bool = False
    noise: InitialNoise | None = None


class PatchedModel:
    """A transformer, its adapter, its correction, and its running forwards.

    Args:
        module: the transformer.
        adapter: the adapter that describes it.
        correction: the plans for its layers.
    """

    def __init__(self, module: nn.Module, adapter: Adapter, correction: Correction) -> None:
        self.module = module
        self.adapter = adapter
        self.correction = correction
        self.running: list[ForwardContext] = []
        self.traced: Traced = NOTHING
        """What the last traced forward has read, for attention modules that torch.compile traces."""
        self.in_trace = Read(None, 1.0)
        """The same, with symbols for numbers. Only valid in the trace."""
        self.refused_in_trace = ""
        self.has_called = False
        """Whether a layer that may be corrected was called in the traced forward that is running."""
        self.places = list(adapter.places(module))
        kernels = {kernel.function for site in adapter.sites for kernel in site.kernels}
        self.is_traceable = kernels == {SDPA.function} and adapter.grid.of != "attention" and adapter.run_by is None
        """Whether torch.compile can trace the hooks. If not, they run between compiled graphs."""
        self.references = adapter.grid.kinds_of_references
        self.shows_grid = self._shows_grid()
        self.reader = GridReader(adapter, module, self.shows_grid)
        self.signature = Signature(module)
        self.shape = adapter.shape(module)
        self.checked: set[Any] = set()
        """Calls whose order of tokens was checked, see `freeloc.interception.marked`."""
        self.last_steps: tuple[torch.Tensor, float] | None = None
        """What rotary tables that are as described said last: see `rotation`."""
        self.report = TransformerReport()
        """Of the transformer as a whole. The layers have reports of their own."""
        rope = adapter.rope_of(module)
        with OnCpu():
            nothing = torch.zeros(1, dtype=torch.float64)
            self.frequencies = nothing if rope is None else rope.frequencies_of(module, self.shape.head_dim)
        self.rope = None if rope is None else rope.resolved(self.shape.head_dim)
        """The temporal RoPE with this model's numbers; None if it has none."""
        self.tables = "" if rope is None else rope.tables
        """Name of the argument of the attention modules that holds the rotary tables; empty if none does."""
        self.trained_step = 0.0
        """Positions per latent frame in training; 0 if a video's length is counted in latent frames."""
        if rope is not None and rope.trained_step is not None:
            self.trained_step = float(rope.trained_step(module) if callable(rope.trained_step) else rope.trained_step)
        self._other_plans: dict[bytes, LayerPlans] = {}

    def per_frame(self, rotation: Rotation) -> torch.Tensor:
        """Radians per latent frame of the temporal pairs, (pairs,) or (heads, pairs)."""
        own = self.frequencies if rotation.frequencies is None else rotation.frequencies
        return own * rotation.positions_per_frame

    def _shows_grid(self) -> nn.Module:
        """The module whose call has the token grid."""
        of = self.adapter.grid.of
        if of == "attention":
            return self.places[0][3]
        if of == "transformer":
            return self.module
        found = submodule_of(self.module, of, "its token grid")
        if any(found is module for _, _, _, module in self.places):
            raise AdapterError(
                f"TokenGrid.of: expected a submodule that runs before attention, or 'attention', found '{of}'"
            )
        return found

    @cached_property
    def plans(self) -> LayerPlans:
        """The prepared plans of the layers, by length."""
        return LayerPlans(self.correction.plan, self.shape, self.rope, self.frequencies)

    def plans_under(self, rotation: Rotation) -> LayerPlans:
        """The prepared plans of the layers where the model rotates like this."""
        if rotation.frequencies is None:
            return self.plans
        key = rotation.frequencies.numpy().tobytes()
        if key not in self._other_plans:
            if len(self._other_plans) >= MOST_ROTATIONS:
                self._other_plans.clear()
            self._other_plans[key] = LayerPlans(self.correction.plan, self.shape, self.rope, rotation.frequencies)
        return self._other_plans[key]

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Read:
        """What the arguments of a call of the transformer say."""
        adapter, given = self.adapter, self.signature.given(args, kwargs)
        counters = [site.text_tokens for site in adapter.sites if site.text_tokens.startswith(OF_MODEL)]
        own = {name.removeprefix(OF_MODEL) for name in counters}
        texts = {name: count_of(argument_at(given, name)) for name in own}
        grid, refused = None, self.reader.refusal(self.module, given, self.correction.allowed)
        first, last, apart = references_of(self.references, self.module, given)
        if self.correction.references is not None:
            first, last = self.correction.references
        if adapter.grid.of == "transformer":
            (frames, height, width), why = self.reader.of_model(self.module, given)
            grid, refused = (frames + apart, height, width), refused or why
        rope = None if self.rope is None else adapter.rope
        step = 1.0 if rope is None or rope.step is None else float(rope.step(self.module, given))
        return Read(grid, step, first, last, refused, texts, apart)

    def read_alone(self) -> Read | None:
        """What is known without a call of the transformer, if the attention modules get the grid; None if it is not."""
        is_counted = any(callable(known.frames) for known in self.references)
        if self.adapter.grid.of != "attention" or (is_counted and self.correction.references is None):
            return None
        first, last = self.correction.references or references_of(self.references, self.module, {})[:2]
        return Read(None, 1.0, first, last)

    def read_running(self, forward: ForwardContext) -> Read:
        """What a running forward has read. It reads when this is first called."""
        if forward.read is None:
            found = context.arguments(forward.frame)
            if found is None:  # these are local variables of PyTorch, which may be renamed
                raise LayoutError(f"torch {torch.__version__} is not supported: it hides the arguments of modules")
            forward.read = self.with_references(self.read(*found), forward.frame)
        return forward.read

    def read_submodule(self, read: Read, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Read:
        """What a forward has read, with the grid from the call of a submodule.

        If it runs more than once, as on a reference image, the call with the most tokens counts. How many tokens the
        attention modules get is checked in any case.
        """
        given = self.reader.given(args, kwargs) | {"output": output}
        (frames, height, width), refused = self.reader.of_model(self.shows_grid, given)
        grid = frames + read.apart, height, width
        if read.grid is not None and read.grid != grid:
            if math.prod(read.grid) == math.prod(grid):
                refused = f"{self.adapter.grid.of} ran more than once, on grids of {read.grid} and {grid} tokens"
            grid = max(read.grid, grid, key=math.prod)
        return read._replace(grid=grid, refused=read.refused or refused)

    def trace(self, read: Read) -> None:
        """Keep what was read in a trace of torch.compile."""
        self.in_trace, self.refused_in_trace = read, read.refused
        if read.grid is not None:
            self.traced = Traced.of(read)

    def with_references(self, read: Read, frame: FrameType, is_told: bool = True) -> Read:
        """Add the number of references that the calling pipeline knows. If it does not, the report is told."""
        for known in self.references if self.correction.references is None else ():
            if known.frames is not None:
                continue
            found = context.callers_value(frame, known.caller) if known.caller else None
            if found is None:
                self.report.notes.update([UNKNOWN_REFERENCES] * is_told)
            elif known.place == "first":
                read = read._replace(first=read.first + count_of(found))
            else:
                read = read._replace(last=read.last + count_of(found))
        return read

    def length(self, read: Read, grid: Grid, rotation: Rotation) -> VideoLength:
        """How long the video of a call is."""
        spacing = rotation.positions_per_frame / self.trained_step if self.trained_step else 1.0
        spacing = spacing if spacing > 0 else 1.0  # all frames at one time: then only their number counts
        length = VideoLength(grid[0], read.first, read.last, 1.0 if abs(spacing - 1) < 1e-3 else round(spacing, 6))
        if self.correction.noise is not None:
            self.correction.noise.require(length)
        return length

    def rotation(self, tables: list[torch.Tensor], step: float, rows: TableRows) -> Rotation:
        """How far the model rotates each latent frame, by its rotary tables."""
        assert self.rope is not None
        rope, head_dim, per_head = self.rope, self.shape.head_dim, self.frequencies.ndim == 2
        with OnCpu():
            steps = rotation_steps(tables, rope, head_dim, rows, per_head)
            if not isinstance(steps, torch.Tensor):
                return Rotation(step, None, steps or "")
            last = self.last_steps
            if last is not None and last[1] == step and torch.equal(last[0], steps):  # as in most forwards
                return Rotation(step)
            tolerance = max(TOLERANCE, 4 * self.adapter.rounding)
            found = fit_rotation(steps, self.frequencies, step, rows, tolerance)
            if found == Rotation(step):
                self.last_steps = steps, step
            elif (now := self.changed_weights()) is not None:
                again = fit_rotation(steps, now, step, rows, tolerance)
                return again._replace(frequencies=now) if again.frequencies is None and not again.refused else found
            return found

    def changed_weights(self) -> torch.Tensor | None:
        """Frequencies that are weights, if they are others than at the time of patching; None if they are not."""
        rope = self.adapter.rope
        if rope is None or rope.frequencies_from is None:
            return None
        resolved = self.adapter.rope_of(self.module)
        assert resolved is not None
        now = resolved.frequencies_of(self.module, self.shape.head_dim)
        return None if torch.equal(now, self.frequencies) else now

    def note_reading(self, read: Read, length: VideoLength, rotation: Rotation, text: int) -> None:
        """Tell the report what was read from a forward beside the number of its frames."""
        unit = self.adapter.rope.unit if self.adapter.rope is not None else ""
        references = [f"{length.first} before the video"] * bool(length.first) + [f"{length.last} after it"] * bool(
            length.last
        )
        is_changed = rotation.frequencies is not None or rotation.positions_per_frame != read.positions_per_frame
        notes = {
            f"reference images, not counted as latent frames: {', '.join(references)}": references,
            f"text tokens: {text}": text,
            f"positions are {unit}: latent frames are {length.spacing:.4g} times as far apart as in training": (
                length.spacing != 1
            ),
            "frequencies of positions: read from rotary tables, not those of the adapter": is_changed,
        }
        self.report.notes.update(note for note, applies in notes.items() if applies)

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or pickle, without running forwards and derived values; installed adapters by name."""
        derived = ("plans", "places", "checked", "references")
        kept = {name: value for name, value in vars(self).items() if name not in derived}
        owners = registry().adapters.owners.get(self.adapter.name, [])
        installed = any(known == self.adapter for _, known in owners)  # also one with layer numbers, read once
        return kept | {"adapter": self.adapter.name if installed else self.adapter, "running": [], "traced": NOTHING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.checked = set()
        if isinstance(self.adapter, str):
            self.adapter = registry().adapters.get(self.adapter)  # type: ignore[assignment]  # reason: no refusal is patched
        self.reader.of_grid(self.adapter.grid)
        self.references = self.adapter.grid.kinds_of_references
