"""Depth ``video``: the paper's probe. It generates whole videos with one layer perturbed at a time, and scores them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.metrics.scorers import Scorer
from freeloc.probing import perturbations
from freeloc.probing.calls import watched
from freeloc.probing.cells import Cell
from freeloc.probing.depths.base import CONTEXT_IS_SHOWN, Depth, samples_of
from freeloc.probing.perturbations import WINDOW
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.scorers import find_scorer
from freeloc.probing.statistics import threshold
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject, identity, one_layer
from freeloc.probing.table import Label, Table


@dataclass(frozen=True)
class Video(Depth):
    """Generates a video for every prompt with one layer perturbed at a time, and scores it.

    Tables: ``video.score`` (scorers, layers, perturbations, prompts), and ``video.base`` (scorers, prompts) for the
    unperturbed videos. The sign of scores is changed if lower is better.

    Args:
        scorers: names of scorers (``freeloc scorers`` lists them), or `Scorer` objects.
        shifts: shifts of the keys, in latent frames; by default `perturbations.default_shifts`. A window is added.
    """

    name: ClassVar[str] = "video"
    rank: ClassVar[int] = 4
    by_heads: ClassVar[bool] = False
    needs_video: ClassVar[bool] = True

    scorers: Sequence[str | Scorer] = ("sharpness", "dynamic degree")
    shifts: Sequence[int] | None = None

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The scorers and the perturbations."""
        scorers = [scorer.name for scorer in self._scorers()]
        if len(subject.prompts) < 2:
            raise ProbeError(f"expected at least 2 prompts, for a standard error, found {len(subject.prompts)}")
        return {"scorers": scorers, "perturbations": subject.perturbations(self.shifts)}

    def measure(self, subject: Subject) -> dict[str, Table]:
        """See `Video`."""
        prompts, names, layers = subject.prompt_labels, subject.perturbations(self.shifts), range(subject.shape.layers)
        base = [f"video/{prompt:03}/base" for prompt in range(len(prompts))]
        cells = [f"video/{p:03}/{layer}/{name}" for layer in layers for name in names for p in range(len(prompts))]
        found = subject.measure([*base, *cells], partial(self._scores, subject), "video")
        axes: dict[str, list[Label]] = {"scorers": [scorer.name for scorer in self._scorers()]}
        scores = torch.stack([found[name]["scores"] for name in cells], dim=1).unflatten(
            1, (len(layers), len(names), len(prompts))
        )
        whole = axes | {"layers": [*layers], "perturbations": [*names], "prompts": prompts}
        unperturbed = torch.stack([found[name]["scores"] for name in base], dim=1)
        return {"video.score": Table(scores, whole), "video.base": Table(unperturbed, axes | {"prompts": prompts})}

    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """How much the score of the rule's scorer falls under shifts, and under the window."""
        if heads:
            raise ProbeError("expected heads=False with depth video, which perturbs whole layers")
        unperturbed, score = measured.table("video.base"), measured.table("video.score")
        scorer = unperturbed.labels("scorers")[0] if rule.scorer is None else rule.scorer
        whole, score = unperturbed.at(scorers=scorer).values, score.at(scorers=scorer)
        shifted, windowed = score.without(perturbations=WINDOW), score.at(perturbations=WINDOW)
        return Summary.of_samples(whole - samples_of(shifted, heads), whole - samples_of(windowed, heads))

    def choose(self, measured: Measurements, rule: Rule, heads: bool = False) -> list[list[str]]:
        """The policy of each layer by `Rule`; it requires two prompts or more.

        It never gives TSA: the probe puts a window on direct sampling, where it also takes away positions that were
        never trained. So a score that rises does not say that VRPR with TSA is better than VRPR.
        """
        self.require_errors(measured)
        errors = threshold(rule.errors, self.count_of(measured))
        return super().choose(measured, replace(rule, errors=errors), heads)

    def sensitive(self, found: Summary, rule: Rule) -> Tensor:
        """All but the layers where the fall of the score is below the share of the mean, beyond standard errors."""
        highest = found.position + rule.errors * found.position_error
        return highest >= rule.position * found.position.mean()

    def remark(self, measured: Measurements) -> str:
        """Why context is shown, and not used."""
        return CONTEXT_IS_SHOWN

    def _scorers(self) -> list[Scorer]:
        found = [find_scorer(scorer) for scorer in self.scorers]
        if not found or len({scorer.name for scorer in found}) < len(found):
            raise ProbeError(f"expected at least one scorer, each once, found {[scorer.name for scorer in found]}")
        return found

    def _scores(self, subject: Subject, name: str) -> Cell:
        """The scores of one video; its run must start with the same call as all runs of its prompt."""
        _, prompt, layer, *kind = name.split("/")
        changed = partial(_perturbed, kind[0], subject.trained_frames) if kind else identity
        plan = one_layer(int(layer) if kind else 0, changed, identity, None, subject.shape.heads)
        with watched(subject.found, [0], ends=False) as steps, subject.under(plan):
            output = subject.generate(int(prompt))
        subject.require_same(int(prompt), [0], steps.calls)
        video, text = as_video(output), str(subject.prompt_labels[int(prompt)])
        scores = [scorer.score(video, text) * (1 if scorer.higher_is_better else -1) for scorer in self._scorers()]
        return {"scores": torch.tensor(scores, dtype=torch.float64)}


def _perturbed(name: str, trained_frames: int, frames: int) -> Any:
    return perturbations.perturbed(name, frames, trained_frames)


def as_video(output: Any) -> Tensor:
    """The video (frames, height, width, 3) in 0..1 that a run returned: a tensor or array, or a pipeline's output.

    >>> as_video(torch.rand(1, 5, 8, 8, 3)).shape
    torch.Size([5, 8, 8, 3])

    Raises:
        ProbeError: if it contains no such video, or more than one.
    """
    frames = getattr(output, "frames", output)
    while isinstance(frames, list | tuple) and len(frames) == 1:
        frames = frames[0]
    if isinstance(frames, list) and frames:  # a list of images
        frames = torch.stack([torch.as_tensor(_array(image)) for image in frames])
    try:
        video = torch.as_tensor(frames)
    except (TypeError, ValueError, RuntimeError):
        raise ProbeError(
            f"expected run to return a video (frames, height, width, 3), found {type(output).__name__}"
        ) from None
    video = video[0] if video.ndim == 5 and len(video) == 1 else video
    if video.ndim == 4 and video.shape[-1] != 3 and video.shape[1] == 3:  # the layout of output_type="pt"
        video = video.movedim(1, -1)
    if video.ndim != 4 or video.shape[-1] != 3:
        raise ProbeError(f"expected run to return one video (frames, height, width, 3), found {tuple(video.shape)}")
    return video.float() / 255 if video.dtype == torch.uint8 else video.float()


def _array(image: Any) -> Any:
    """An image as a NumPy array."""
    import numpy

    return numpy.array(image)
