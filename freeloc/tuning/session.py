"""Session: one tuning from the first measurement to the result, as the leading process does it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.tuning.candidates import Assignment, Candidate, profile_of, uniform
from freeloc.tuning.defaults import on_one_layer
from freeloc.tuning.held_out import HARM, SHARE, HeldOut, beats, compare
from freeloc.tuning.losses import Losses
from freeloc.tuning.own_clips import SAFE
from freeloc.tuning.progress import Progress
from freeloc.tuning.racing import Unit
from freeloc.tuning.runner import Runner
from freeloc.tuning.search import Search
from freeloc.tuning.shipping import Shipping, hides, without_windows
from freeloc.tuning.units import halves, lengths, order
from freeloc.tuning.work import Work

CHOSEN, WITHOUT_WINDOWS = "layer by layer", "layer by layer, without windows"
"""Names of assignments that differ between layers."""

MOST_COMPARED = 3
"""Most candidates on all layers that are compared on the other clips, beside the best one and `SAFE`."""


class OwnClips(Sequence[Tensor]):
    """Samples of the model as clips, one for each prompt: see `freeloc.tuning.own_clips`.

    Args:
        runner: samples them.
        work: saves and shares them.
        times: their length, in trained lengths.
    """

    def __init__(self, runner: Runner, work: Work, times: int) -> None:
        model = runner.profile.model
        safe = uniform(Candidate(SAFE), model.layers)
        frames = times * (model.trained_latent_frames - 1) + 1
        self._work = work
        self.tasks = [runner.own_task(safe, prompt, frames) for prompt in range(len(runner.prompts))]

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._work.cell(self.tasks[index].name)["latents"]


@dataclass
class Session:
    """What `freeloc.tune` was asked for, and what it found.

    Args:
        runner: measures.
        work: saves and shares measurements.
        progress: shows the time.
        candidates, alternatives, also, times, levels, videos, places: see `freeloc.tune`.
        recorded: what the measurements depend on.
    """

    runner: Runner
    work: Work
    progress: Progress
    candidates: Sequence[Candidate]
    alternatives: Sequence[Candidate] | None
    also: Sequence[Candidate]
    times: Sequence[int]
    levels: Sequence[float]
    videos: int
    places: float
    recorded: dict[str, Any]
    search: Search = field(init=False)
    shipping: Shipping = field(init=False)
    frames: list[int] = field(init=False)
    """Lengths, in latent frames."""
    held_out: list[HeldOut] = field(default_factory=list)
    """Comparisons on the clips that nothing was chosen on, each with `search.base` on all layers."""
    chosen: Assignment = field(init=False)
    """The result."""
    name: str = ""
    """Its name."""
    notes: list[str] = field(default_factory=list)
    """What else must be known, in sentences."""

    @property
    def is_own(self) -> bool:
        """Whether the clips are samples of the model itself."""
        return isinstance(self.runner.clips, OwnClips)

    def run(self) -> None:
        """Search and check.

        Raises:
            ProbeError: if the budget is too small, or the clips are too short.
        """
        work, runner, model = self.work, self.runner, self.runner.profile.model
        self.progress.stage("clips")
        self._sample_own_clips()
        self.frames = lengths(self.times, model.trained_latent_frames, runner.clip_frames)
        self.shipping = Shipping(runner, work, self.videos, max(self.frames), self.progress.update)
        if self.videos:
            self.shipping.first()
        losses = Losses(runner, work, self.places, self.progress.update)
        tuning, others = halves(len(runner.clips), runner.seed)
        units = order(tuning, self.frames, self.levels, runner.seed)
        candidates = self._supported([*self.candidates, *self.also])
        self.search = Search(losses, work.clock, units, candidates, self._on_one_layer, model.layers)
        self.search.entered = self.progress.stage
        found = self.search.run()
        self.progress.stage("other clips")
        self._check(found, losses, order(others, self.frames, self.levels, runner.seed))
        self.progress.stage("sampled videos")
        self._ship()

    def _on_one_layer(self, ranked: Sequence[Candidate]) -> list[Candidate]:
        """What is tried on one layer if all others have the first of these."""
        given = on_one_layer(ranked) if self.alternatives is None else self.alternatives
        return self._supported([*given, *self.also])

    def _supported(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates that can be executed on this model; the others are noted with the reason."""
        found = []
        for one in dict.fromkeys(candidates):
            if reason := self.runner.refusal(one):
                note = f"'{one}' was left out: {reason}"
                self.notes += [note] if note not in self.notes else []
            else:
                found.append(one)
        return found

    def _sample_own_clips(self) -> None:
        clips = self.runner.clips
        if isinstance(clips, OwnClips) and not self.work.do(clips.tasks, share=0.25, after=self.progress.update):
            raise ProbeError(
                f"expected a budget that samples {len(clips)} long videos in its first quarter, found "
                f"{self.work.clock.budget / 60:g} minutes. Give more minutes, or clips"
            )

    def _check(self, found: Assignment, losses: Losses, units: Sequence[Unit]) -> None:
        """Compare the choice with candidates on all layers, on the other clips, and take the best of all."""
        search, layers = self.search, self.runner.profile.model.layers
        base, usual = search.base, [one for one in search.candidates if one.name == SAFE]
        everywhere = dict.fromkeys([base, *search.ranked[:MOST_COMPARED], *usual])
        compared = {one.name: uniform(one, layers) for one in everywhere}
        name = _name_of(found, CHOSEN)
        self.held_out = compare(losses, units, {name: found} | compared, base.name)
        if not losses.of(found).keys() >= set(units):
            self.notes.append(f"Time ran out in the check on other clips, after {SHARE:.0%} of the budget.")
        if name != base.name and not beats(self.held_out[0]):
            self.notes.append(
                f"On the other clips '{name}' does not beat '{base.name}' on all layers, so that is taken instead."
            )
            name, found = base.name, compared[base.name]
        lowest = min((one for one in self.held_out if one.name in compared), key=lambda one: one.score.mean)
        if name == base.name and lowest.name != name and lowest.score.is_better(HARM):
            self.notes.append(
                f"On the other clips '{lowest.name}' on all layers is better than '{name}', so it is taken instead."
            )
            name, found = lowest.name, lowest.assignment
        self.name, self.chosen = name, found

    def _ship(self) -> None:
        """Sample videos of the choice, and back off where they break a limit: without windows, then on all layers."""
        profile, layers, longest = self.runner.profile, self.runner.profile.model.layers, max(self.frames)
        base, usual = self.search.base, [one for one in self.search.candidates if one.name == SAFE]
        seeing = [
            one
            for one in [*self.search.ranked, *usual]
            if not hides(profile_of(profile, uniform(one, layers)), 0, longest)
        ]
        rest = seeing[0] if seeing else base
        chain = [self.chosen, without_windows(profile, self.chosen, rest, longest)]
        chain += [uniform(one, layers) for one in (base, rest, *usual)]
        named = [(_name_of(self.chosen, self.name), self.chosen)]
        named += [(_name_of(one, WITHOUT_WINDOWS), one) for one in dict.fromkeys(chain) if one != self.chosen]
        self.name, self.chosen = self.shipping.choose(named)
        self.notes += self.shipping.notes


def _name_of(assignment: Assignment, otherwise: str) -> str:
    """The name of the candidate that all layers have, or another name."""
    return assignment[0].name if len(set(assignment)) == 1 else otherwise
