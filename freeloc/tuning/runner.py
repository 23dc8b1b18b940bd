"""Runner: measures tasks on the model: the denoising loss of a unit, and a sampled video."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.adapter.paths import argument_at
from freeloc.adapter.spec import Adapter
from freeloc.errors import PatchError, ProbeError
from freeloc.patching import patch
from freeloc.probing.calls import Call, watched
from freeloc.probing.cells import Cell, Cells
from freeloc.probing.denoising import Objective, objective_of
from freeloc.probing.depths.denoising_loss import noise_seed, require_finite, require_noise, squared_error
from freeloc.probing.depths.video import as_video
from freeloc.probing.places import Axes, argument_of, axes_of, motion_weight
from freeloc.probing.subject import Subject
from freeloc.profile.planning import layer_plans
from freeloc.profile.schema import Profile
from freeloc.tuning.candidates import Assignment, Candidate, as_data, from_data, key_of, profile_of, uniform
from freeloc.tuning.own_clips import FEWEST_STEPS, clean_of
from freeloc.tuning.racing import Unit
from freeloc.tuning.samples import measures_of, strip_of
from freeloc.tuning.work import Task


@dataclass
class Runner:
    """The model, how to run it, and the clips.

    Args:
        pipeline: the pipeline or transformer that the caller gave.
        found: its transformers, with their adapters.
        run: (prompt, latent frames) -> video; see `freeloc.tune`.
        prompts: one for all clips, or one for each.
        clips: latents of the clips, each one sample of the transformer's input without the batch.
        profile: the source of the model's facts and of settings.
        objective: what the model predicts; None for that of the pipeline's scheduler.
        argument: name of the argument that holds the noisy video; None for the adapter's.
        axes: einops names of a clip's axes; None for the adapter's.
        seed: random seed of the noise.
        folder: folder of what must be the same in all runs.
    """

    pipeline: object
    found: Sequence[tuple[nn.Module, Adapter]]
    run: Callable[..., Any]
    prompts: Sequence[Any]
    clips: Sequence[Tensor]
    profile: Profile
    objective: Objective | None
    argument: str | None
    axes: str | None
    seed: int
    folder: Path | None

    def __post_init__(self) -> None:
        self._subject = lru_cache(maxsize=None)(self._new_subject)
        self._call = lru_cache(maxsize=None)(self._first_call)

    @cached_property
    def predicts(self) -> Objective:
        """What the model predicts."""
        return self.objective or objective_of(self.pipeline)

    def loss_task(self, assignment: Assignment, unit: Unit) -> Task:
        """The task of a loss."""
        name = f"loss/{key_of(self.profile, assignment)}/{unit.frames}-{unit.clip:03}-{unit.level:g}"
        return Task(name.replace(".", "_"), f"loss {unit.frames}", {"loss": as_data(assignment), "unit": list(unit)})

    def sample_task(self, assignment: Assignment | None, prompt: int, frames: int) -> Task:
        """The task of a sampled video; None samples the model as it is."""
        key = "direct" if assignment is None else key_of(self.profile, assignment)
        data = {"sample": assignment and as_data(assignment), "prompt": prompt, "frames": frames}
        return Task(f"sample/{key}/{frames}-{prompt:03}", f"sample {frames}", data)

    def own_task(self, assignment: Assignment, prompt: int, frames: int) -> Task:
        """The task of a clip that is a sample of the model."""
        data = {"own": as_data(assignment), "prompt": prompt, "frames": frames}
        return Task(f"own/{key_of(self.profile, assignment)}/{frames}-{prompt:03}", f"own {frames}", data)

    def measure(self, task: Task) -> Cell:
        """Measure a task of this runner."""
        if "loss" in task.data:
            return self._loss(from_data(task.data["loss"]), Unit(*task.data["unit"]))
        if "own" in task.data:
            return self._own(from_data(task.data["own"]), task.data["prompt"], task.data["frames"])
        given = task.data["sample"]
        return self._sample(from_data(given) if given else None, task.data["prompt"], task.data["frames"])

    @cached_property
    def clip_frames(self) -> int:
        """Latent frames of the shortest clip.

        Raises:
            ProbeError: if clips have other axes than the video of a call.
        """
        axis, per_frame = self._frames
        found = []
        for clip in self.clips:
            if clip.ndim != len(_parts(self._axes.names)):
                raise ProbeError(
                    f"expected clips with the axes '{self._axes.names}', each one sample of the transformer's "
                    f"input without the batch, found the shape {tuple(clip.shape)}"
                )
            found.append(clip.shape[axis] // per_frame)
        return min(found)

    def clip(self, number: int, frames: int) -> Tensor:
        """A clip cut to its first latent frames."""
        axis, per_frame = self._frames
        return self.clips[number].narrow(axis, 0, frames * per_frame)

    @cached_property
    def _axes(self) -> Axes:
        """The axes of a clip, as a call of the trained length has them."""
        call, adapter = self._call(0, self.profile.model.trained_latent_frames), self.found[0][1]
        given = argument_at(call.arguments, self.argument or argument_of(adapter))
        return axes_of(call, adapter, given[0], self.axes)

    @cached_property
    def _frames(self) -> tuple[int, int]:
        """The axis of frames of a clip, and how many places along it are one frame: more than one for tokens."""
        parts = _parts(self._axes.names)
        axis = next(index for index, part in enumerate(parts) if "f" in part)
        return axis, math.prod(self._axes.sizes[name] for name in parts[axis] if name != "f" and len(parts[axis]) > 1)

    def refusal(self, candidate: Candidate) -> str:
        """Why a candidate cannot be executed on this model; empty if it can.

        Raises:
            ProfileError, RegistryError: if there is no such method, or settings do not fit it.
        """
        profile = profile_of(self.profile, uniform(candidate, self.profile.model.layers))
        try:
            for transformer, adapter in self.found:
                patch(transformer, profile, adapter=adapter).remove()
        except PatchError as error:
            return str(error)
        return ""

    def _loss(self, assignment: Assignment, unit: Unit) -> Cell:
        call = self._call(unit.clip if len(self.prompts) > 1 else 0, unit.frames)
        adapter, clean = self.found[0][1], self.clip(unit.clip, unit.frames)
        seed = noise_seed(self.seed, unit.clip, unit.level)
        with self._subject(unit.frames).under(partial(layer_plans, profile_of(self.profile, assignment))):
            error = squared_error(call, adapter, self.predicts, clean[None], unit.level, seed, self.argument, self.axes)
        require_finite(float(error.mean()), unit.level, unit.clip)
        axes = axes_of(call, adapter, clean, self.axes)
        weight = motion_weight(clean, axes.names, **axes.sizes)
        return {"whole": error.double().mean(), "places": (error.double() * weight).mean()}

    def _sample(self, assignment: Assignment | None, prompt: int, frames: int) -> Cell:
        subject = self._subject(frames)
        if assignment is None:
            output = subject.generate(prompt)
        else:
            with subject.under(partial(layer_plans, profile_of(self.profile, assignment))):
                output = subject.generate(prompt)
        try:
            video = as_video(output).clamp(0, 1)
        except ProbeError as error:
            raise ProbeError(
                f"{error}. Sampled videos are measured before a profile is written; videos=0 leaves this check out"
            ) from None
        return {"measures": measures_of(video), "strip": strip_of(video)}

    def _own(self, assignment: Assignment, prompt: int, frames: int) -> Cell:
        """The clean latents that the last step of a run predicts."""
        subject, adapter = self._subject(frames), self.found[0][1]
        with subject.under(partial(layer_plans, profile_of(self.profile, assignment))):
            with watched(self.found) as counted:
                subject.generate(prompt)
            if counted.number + 1 < FEWEST_STEPS:
                raise ProbeError(
                    f"expected a run of {FEWEST_STEPS} denoising steps or more, whose videos can stand for real ones, "
                    f"found {counted.number + 1}: give clips"
                )
            with watched(self.found, [counted.number]) as last:
                subject.generate(prompt)
            call = last.calls[counted.number]
            output = call.run()
        noisy = argument_at(call.arguments, self.argument or argument_of(adapter))
        noisy = torch.stack(noisy) if isinstance(noisy, list) else noisy
        channels = axes_of(call, adapter, noisy[0], self.axes).channels
        return {"latents": clean_of(call, noisy, output, self.predicts, channels)}

    def _new_subject(self, frames: int) -> Subject:
        def run(prompt: Any) -> Any:
            with torch.no_grad():
                return self.run(prompt, frames)

        subject = Subject(self.pipeline, self.found, run, self.prompts, self.profile, self.seed)
        subject.cells = Cells(self.folder and self.folder / "calls" / str(frames), {})
        return subject

    def _first_call(self, prompt: int, frames: int) -> Call:
        """The first call of a run, which must be from noise."""
        call = next(iter(self._subject(frames).first_calls(prompt, [0]).values()))
        if self.objective is None:  # a given objective has the model's scale of time
            require_noise(call, self.predicts)
        return call


def _parts(axes: str) -> list[list[str]]:
    """The names in each axis of a tensor.

    >>> _parts("(f h w) c")
    [['f', 'h', 'w'], ['c']]
    """
    return [part.strip("()").split() for part in re.findall(r"\([^)]*\)|\w+", axes)]
