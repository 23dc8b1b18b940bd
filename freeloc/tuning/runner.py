"""Runner: measures tasks on the model: the denoising loss of a unit, and a sampled video."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.adapter.spec import Adapter
from freeloc.errors import ProbeError
from freeloc.probing.calls import Call
from freeloc.probing.cells import Cell, Cells
from freeloc.probing.denoising import Objective, objective_of
from freeloc.probing.depths.denoising_loss import denoising_loss, require_finite, require_noise
from freeloc.probing.depths.video import as_video
from freeloc.probing.subject import Subject
from freeloc.profile.planning import layer_plans
from freeloc.profile.schema import Profile
from freeloc.tuning.candidates import Assignment, as_data, from_data, key_of, profile_of
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

    def measure(self, task: Task) -> Cell:
        """Measure a task of `loss_task` or `sample_task`."""
        if "loss" in task.data:
            return self._loss(from_data(task.data["loss"]), Unit(*task.data["unit"]))
        given = task.data["sample"]
        return self._sample(from_data(given) if given else None, task.data["prompt"], task.data["frames"])

    def clip(self, number: int, frames: int) -> Tensor:
        """A clip cut to its first latent frames, with a batch of 1."""
        clip, axis = self.clips[number], frame_axis(self.found[0][1])
        return (clip if axis is None else clip.narrow(axis, 0, frames))[None]

    def _loss(self, assignment: Assignment, unit: Unit) -> Cell:
        call = self._call(unit.clip if len(self.prompts) > 1 else 0, unit.frames)
        profile = profile_of(self.profile, assignment)
        seed = self.seed + 1_000_003 * unit.clip + round(1000 * unit.level)
        clean = self.clip(unit.clip, unit.frames)
        with self._subject(unit.frames).under(partial(layer_plans, profile)):
            loss = denoising_loss(call, self.found[0][1], self.predicts, clean, unit.level, seed, self.argument)
        require_finite(loss, unit.level, unit.clip)
        return {"whole": torch.tensor(loss, dtype=torch.float64)}

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


def frame_axis(adapter: Adapter) -> int | None:
    """The axis of frames of one sample of the transformer's input; None where frames, rows and columns are packed."""
    axes = adapter.grid.axes.split()
    return axes.index("f") - 1 if "f" in axes else None
