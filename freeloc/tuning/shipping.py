"""The check on sampled whole videos: what freezes, drifts or loops is not shipped, however low its loss is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from freeloc.plans.frame_plan import DENSE, FramePlan
from freeloc.profile.planning import layer_plans
from freeloc.profile.schema import Profile
from freeloc.tuning.candidates import Assignment, Candidate, profile_of
from freeloc.tuning.runner import Runner
from freeloc.tuning.samples import faults, nearer
from freeloc.tuning.work import Work

SHORT, DIRECT = "short samples", "direct"
"""Names of the uncorrected samples, of the trained length and of the full one."""


@dataclass
class Shipping:
    """Sampled videos of several settings.

    Args:
        runner: samples videos.
        work: saves and shares them.
        videos: number of prompts.
        frames: latent frames of the long videos.
        after: called after each video.
    """

    runner: Runner
    work: Work
    videos: int
    frames: int
    after: Callable[[], None]
    measured: dict[str, Tensor] = field(default_factory=dict)
    """Measures (prompts, measures) by name of the setting."""
    strips: dict[str, Tensor] = field(default_factory=dict)
    """A few frames of the first video, (height, width, 3) uint8, by name of the setting."""
    notes: list[str] = field(default_factory=list)
    """What was found, in sentences."""

    def first(self) -> None:
        """Sample short videos, before anything else: a run that returns no video is an error at once."""
        trained, clock = self.runner.profile.model.trained_latent_frames, self.work.clock
        self._sample(SHORT, None, trained)
        short, long = (self.runner.sample_task(None, 0, frames).kind for frames in (trained, self.frames))
        # Attention takes the square of the frames, all else their number.
        clock.expect(long, clock.typical(short) * (self.frames / trained) ** 1.5)

    def choose(self, chain: Sequence[tuple[str, Assignment]]) -> tuple[str, Assignment]:
        """The first setting of the chain whose videos are not worse than the next one's where they break a limit.

        Where time runs out, windows are not shipped unseen: the first setting that hides no frames is taken.
        """
        if not self.videos or SHORT not in self.measured:
            return chain[0]
        place, found = 0, False
        while not found:
            place, found = self._step(chain, place)
        self._sample(DIRECT, None, self.frames)  # to show it, if there is time
        return chain[place]

    def _step(self, chain: Sequence[tuple[str, Assignment]], place: int) -> tuple[int, bool]:
        """The place of the setting to look at next, and whether it is the result."""
        name, assignment = chain[place]
        if not self._sample(name, assignment, self.frames):
            return self._unseen(chain, place), True
        short = self.measured[SHORT]
        broken = faults(self.measured[name], short)
        said = ", ".join(limit.fault for limit in broken)
        if not broken:
            self.notes.append(f"Sampled videos of '{name}' are within all limits.")
            return place, True
        if place + 1 == len(chain):
            self.notes.append(f"'{name}' {said}, and nothing simpler is left.")
            return place, True
        after, simpler = chain[place + 1]
        if not self._sample(after, simpler, self.frames):
            self.notes.append(f"'{name}' {said}.")
            return self._unseen(chain, place + 1), True
        if any(nearer(self.measured[after], self.measured[name], short, limit) for limit in broken):
            self.notes.append(f"'{name}' {said}: '{after}' comes in its place.")
            return place + 1, False
        self.notes.append(f"'{name}' {said}, but '{after}' does so no less: '{name}' stays.")
        return place, True

    def _unseen(self, chain: Sequence[tuple[str, Assignment]], place: int) -> int:
        """The place of what is taken if the videos of a setting could not be sampled in time."""
        name, profile = chain[place][0], self.runner.profile
        layers = range(profile.model.layers)
        for later in range(place, len(chain)):
            found = profile_of(profile, chain[later][1])
            if not any(hides(found, layer, self.frames) for layer in layers):
                break
        said = f"Time ran out before videos of '{name}' were sampled"
        taken = chain[later][0]
        if later == place:
            self.notes.append(f"{said}: they are not checked. It hides no frames.")
        else:
            self.notes.append(f"{said}. Windows are not shipped unseen: '{taken}', which hides no frames, is taken.")
        return later

    def _sample(self, name: str, assignment: Assignment | None, frames: int) -> bool:
        """Sample one video for each prompt; return whether all could be sampled in time."""
        if name in self.measured:
            return True
        prompts = range(min(self.videos, len(self.runner.prompts)))
        tasks = [self.runner.sample_task(assignment, prompt, frames) for prompt in prompts]
        if not self.work.do(tasks, share=1.0, after=self.after):
            return False
        cells = [self.work.cell(task.name) for task in tasks]
        self.measured[name] = torch.stack([cell["measures"] for cell in cells])
        self.strips[name] = cells[0]["strip"]
        return True


def hides(profile: Profile, layer: int, frames: int) -> bool:
    """Whether a layer of a profile does not attend to all pairs of frames: it has a window."""
    plans = layer_plans(profile, layer, frames)
    return any(bool((plan.visibility != DENSE).any()) for plan in ([plans] if isinstance(plans, FramePlan) else plans))


def without_windows(base: Profile, chosen: Assignment, rest: Candidate, frames: int) -> Assignment:
    """The same without layers that hide frames: these get `rest`."""
    profile = profile_of(base, chosen)
    return tuple(rest if hides(profile, layer, frames) else own for layer, own in enumerate(chosen))
