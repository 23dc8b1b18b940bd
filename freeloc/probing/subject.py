"""Subject: the model that is probed, how to run it, and the cells in which measurements are saved."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.adapter.spec import Adapter, ModelShape
from freeloc.errors import ProbeError
from freeloc.interception.parallel import is_shared
from freeloc.interception.patched import Correction
from freeloc.interception.watch import Observer
from freeloc.patching import backends_named, hooks_for
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.length import VideoLength, plans_of_length
from freeloc.plans.method import Plans
from freeloc.probing.calls import Call, watched
from freeloc.probing.cells import Cell, Cells
from freeloc.probing.perturbations import WINDOW, default_shifts, names
from freeloc.probing.table import Label
from freeloc.profile.schema import Profile

PlanOfLayer = Callable[[int, int], Plans]
"""(layer, latent frames) -> `Plans`."""

identity = functools.lru_cache(maxsize=8)(FramePlan.identity)


@dataclass
class Subject:
    """A model that is being probed.

    Args:
        pipeline: the pipeline or transformer that the caller gave.
        found: its transformers, with their adapters.
        run: generates a video; its argument is a prompt if there are any.
        prompts: one run for each; if empty, one run without a prompt.
        profile: the source of the trained length and of the settings of methods.
        seed: random seed of freeloc's own samples.
    """

    pipeline: object
    found: Sequence[tuple[nn.Module, Adapter]]
    run: Callable[..., Any]
    prompts: Sequence[Any]
    profile: Profile
    seed: int
    cells: Cells = field(init=False)
    """The saved measurements."""
    latent_frames: set[int] = field(default_factory=set)
    """Lengths of a run's videos, in latent frames; the same in all runs."""
    _lengths: set[int] = field(default_factory=set)
    """Lengths of the calls so far, while one cell is measured."""

    @property
    def shape(self) -> ModelShape:
        """Layers, heads and head size of the transformers."""
        model, adapter = self.found[0]
        return adapter.shape(model)

    @property
    def trained_frames(self) -> int:
        """Latent frames of the clips that the model was trained on."""
        frames: int = self.profile.model.trained_latent_frames
        return frames

    @property
    def has_rope(self) -> bool:
        """Whether the model has RoPE."""
        return any(adapter.rope_of(model) is not None for model, adapter in self.found)

    def perturbations(self, shifts: Sequence[int] | None) -> list[str]:
        """Names of the perturbations, by default with `default_shifts`; only the window if the model has no RoPE."""
        if not self.has_rope:
            return [WINDOW]
        return names(default_shifts(self.trained_frames) if shifts is None else shifts)

    @property
    def prompt_labels(self) -> list[Label]:
        """A label for each run."""
        return [str(prompt) for prompt in self.prompts] or ["run"]

    def generate(self, prompt: int) -> Any:
        """Run once, with this prompt."""
        return self.run(self.prompts[prompt]) if self.prompts else self.run()

    def measure(self, names: Sequence[str], make: Callable[[str], Cell], title: str) -> dict[str, Cell]:
        """These cells, read from disk if they exist, else measured.

        Raises:
            ProbeError: if a run makes no call, or its video is too short, or not as long as the previous ones.
        """

        def recorded(name: str) -> Cell:
            self._lengths.clear()
            return self._checked(make(name) | {"latent frames": torch.tensor(sorted(self._lengths))})

        for name in filter(self.cells.has, names):
            self._checked(self.cells.get(name, recorded))
        found = self.cells.all(names, recorded, title)
        for cell in found.values():  # including those of other processes
            self._checked(cell)
        return found

    def _checked(self, cell: Cell) -> Cell:
        """Check that a cell's video is longer than the trained clips and as long as the others, and return the cell."""
        frames = set(cell["latent frames"].tolist())
        if not frames:
            raise self.no_call()
        if max(frames) <= self.trained_frames:
            raise ProbeError(
                f"expected a run longer than the trained {self.trained_frames} latent frames, found {max(frames)}: at "
                f"that length no correction changes anything. Run it with {self.trained_frames + 1} latent frames or "
                "more, preferably several times the trained length"
            )
        if self.latent_frames and frames != self.latent_frames:
            both = [" and ".join(map(str, sorted(lengths))) for lengths in (self.latent_frames, frames)]
            raise ProbeError(
                f"expected every run to be as long as the others, found {both[0]} latent frames and then {both[1]}: if "
                "the folder holds measurements of another length, give another folder"
            )
        self.latent_frames = frames
        return cell

    @contextmanager
    def under(self, plan: PlanOfLayer, observer: Observer | None = None) -> Iterator[None]:
        """Patch the model with these plans inside the block; the observer receives its attention calls."""

        def recording(layer: int, length: VideoLength) -> Plans:
            self._lengths.add(length.video)
            trained = self.profile.model.trained_latent_frames
            return plans_of_length(plan(layer, length.video), length, trained)

        correction = Correction(
            self.profile.model.name,
            lambda layer: "probe",
            recording,
            backends_named("auto"),
            observer,
            trained_frames=self.profile.model.trained_latent_frames,
            needs_all_heads=True,
        )
        hooks = hooks_for(self.found, correction)
        try:
            for hook in hooks:
                hook.install()
            # An observer that counts calls would make a compiled model compile again and again.
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def no_call(self) -> ProbeError:
        """The error for a run that never called a transformer."""
        names = " or ".join(sorted({type(model).__name__ for model, _ in self.found}))
        return ProbeError(f"expected the run to call {names}, found no call: does it run another copy of the model?")

    def first_calls(self, prompt: int, steps: Sequence[int]) -> dict[int, Call]:
        """The first call of a transformer at each of these denoising steps of a run.

        Raises:
            ProbeError: if the run makes other calls than before, or no call.
        """
        with torch.compiler.set_stance("force_eager"), watched(self.found, steps) as counted:
            self.generate(prompt)
        self.require_same(prompt, steps, counted.calls)
        return counted.calls

    def require_same(self, prompt: int, steps: Sequence[int], calls: Mapping[int, Call]) -> None:
        """Check that a run of a prompt makes the same calls at these steps as the first run of it.

        Raises:
            ProbeError: if it does not, or made no call.
        """
        if not calls:
            raise self.no_call()
        trace = torch.stack([_trace(call.arguments) for call in calls.values()])
        known = self.cells.get(f"calls/{prompt:03}-{'-'.join(map(str, steps))}", lambda name: {"trace": trace})["trace"]
        if known.shape != trace.shape or not torch.allclose(known, trace, rtol=1e-3, atol=1e-3):
            raise ProbeError(
                "expected every run of a prompt to be the same, found other inputs of the transformer than before: "
                "seed the generator of its noise in the run"
            )


def require_whole(found: Sequence[tuple[nn.Module, Adapter]]) -> None:
    """Refuse a model that several processes share: each would run other prompts and layers of the probe on its part.

    Raises:
        ProbeError: if one of these transformers is shared.
    """
    for model, adapter in found:
        if is_shared(model, adapter):
            raise ProbeError(
                f"expected a whole {type(model).__name__} in each process, found one that several processes share "
                "(context or tensor parallelism, or sharded weights). Each process would run other prompts and layers "
                "of the probe on its part. Give each process a model of its own"
            )


def one_layer(
    layer: int, changed: Callable[[int], FramePlan], rest: Callable[[int], FramePlan], head: int | None, heads: int
) -> PlanOfLayer:
    """Plans that are `changed` in one layer, or in one head of it, and `rest` elsewhere, as functions of the frames."""

    def plan(number: int, frames: int) -> Plans:
        if number != layer:
            return rest(frames)
        if head is None:
            return changed(frames)
        return [changed(frames) if index == head else rest(frames) for index in range(heads)]

    return plan


def fingerprint(model: nn.Module) -> str:
    """A digest of the names, shapes and first values of all weights, 64 hex digits. It is fast to compute.

    Raises:
        ProbeError: if weights are not loaded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.is_floating_point():
            first = _loaded(model, name, tensor).detach().flatten()[:64].to("cpu", torch.float32)
            digest.update(first.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _loaded(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A weight; if it is offloaded by accelerate (on ``meta``), the stored one."""
    if not tensor.is_meta:
        return tensor
    path, _, own = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(path), "_hf_hook", None)
    maps = [getattr(one, "weights_map", None) for one in (hook, *getattr(hook, "hooks", ()))]
    weights = next((weights for weights in maps if weights is not None), None)
    if weights is None:
        raise ProbeError(f"expected a model with its weights loaded, found {name} on the device 'meta'")
    stored: Tensor = weights[own]
    return stored


def _trace(arguments: dict[str, Any]) -> Tensor:
    """A few numbers that identify the tensors of a call."""
    parts = [part for value in arguments.values() for part in (value if isinstance(value, list) else [value])]
    tensors = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    return torch.stack([tensor.flatten()[:3].double().cpu().sum() for tensor in tensors])
