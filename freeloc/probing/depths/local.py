"""Depth ``local``: one unperturbed run, during which the attention of every layer is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from freeloc.interception.watch import LayerCall
from freeloc.plans.baselines import sliding_window
from freeloc.plans.frame_plan import NONE
from freeloc.probing import perturbations
from freeloc.probing.calls import Steps, watched
from freeloc.probing.cells import Cell
from freeloc.probing.depths.base import CONTEXT_IS_SHOWN, Depth, samples_of
from freeloc.probing.measures import context, logits_difference
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject, identity
from freeloc.probing.table import Label, Table

CONTEXT = ("entropy", "windowed", "change", "beyond", "distance")


@dataclass(frozen=True)
class Local(Depth):
    """Measures how shifted keys would change the logits, and how attention is spread, per layer, head and step.

    Tables: ``local.logits`` (layers, heads, shifts, steps, prompts), and ``local.entropy``, ``local.windowed``,
    ``local.change``, ``local.beyond``, ``local.distance`` (layers, heads, steps, prompts), each with its standard
    error, ``local.entropy error`` ... (see `freeloc.probing.measures`).

    Args:
        shifts: shifts of the keys, in latent frames; by default `perturbations.default_shifts`.
        rows: number of query tokens whose softmax is computed; None for all.
        every: measure every n-th denoising step.
    """

    name: ClassVar[str] = "local"
    rank: ClassVar[int] = 1

    shifts: Sequence[int] | None = None
    rows: int | None = 256
    every: int = 1

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The shifts, the sampled query tokens and the steps."""
        return {"shifts": self._shifts(subject), "rows": self.rows, "every": self.every}

    def measure(self, subject: Subject) -> dict[str, Table]:
        """See `Local`."""
        names = [f"local/{index:03}" for index in range(len(subject.prompt_labels))]
        cells = list(subject.measure(names, partial(self._of_prompt, subject), "local").values())
        layers: list[Label] = list(range(subject.shape.layers))
        heads: list[Label] = list(range(subject.shape.heads))
        shifts: list[Label] = list(self._shifts(subject))
        steps: list[Label] = [self.every * index for index in range(len(cells[0]["entropy"]))]
        tables = {}
        for name in cells[0]:
            if name == "latent frames":
                continue
            values = torch.stack([cell[name] for cell in cells], dim=-1)  # (steps, layers, heads, [shifts,] prompts)
            axes = {"layers": layers, "heads": heads} | ({"shifts": shifts} if name == "logits" else {})
            axes |= {"steps": steps, "prompts": subject.prompt_labels}
            tables[f"local.{name}"] = Table(values.movedim(0, -2), axes)
        return tables

    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """The difference of logits under shifts; the change of entropy by the window."""
        logits, change = measured.table("local.logits"), measured.table("local.change")
        return Summary.of_samples(samples_of(logits, heads), samples_of(change, heads))

    def remark(self, measured: Measurements) -> str:
        """Why context is shown, and not used."""
        return CONTEXT_IS_SHOWN

    def _shifts(self, subject: Subject) -> list[int]:
        shifts = perturbations.default_shifts(subject.trained_frames) if self.shifts is None else self.shifts
        return [int(name) for name in perturbations.names(shifts)[:-1]]

    def _of_prompt(self, subject: Subject, name: str) -> Cell:
        """The measurements of one run."""
        with watched(subject.found) as steps:
            measured = _CallMeasurements(self, subject, steps)
            with subject.under(lambda layer, frames: identity(frames), measured):
                subject.generate(int(name.rpartition("/")[2]))
        return measured.stacked()


class _CallMeasurements:
    """Measures the attention calls of a run."""

    def __init__(self, depth: Local, subject: Subject, steps: Steps) -> None:
        self._rows, self._every, self._shifts = depth.rows, depth.every, depth._shifts(subject)
        self._subject = subject
        self._steps = steps
        self._found: dict[tuple[int, int], list[dict[str, Tensor]]] = {}

    def __call__(self, call: LayerCall) -> None:
        step, trained = self._steps.number, self._subject.trained_frames
        if not self._steps.is_first or step % self._every:
            return
        window = sliding_window(call.layout.frames, trained).visibility != NONE
        spread = context(call, window, trained, self._rows, seed=self._subject.seed + 1000 * step + call.layer)
        found = {name: getattr(spread, name) for name in CONTEXT}
        found |= {f"{name} error": error for name, error in spread.errors.items()}
        found["logits"] = logits_difference(call, self._shifts)
        self._found.setdefault((step // self._every, call.layer), []).append(found)

    def stacked(self) -> Cell:
        """Tensors (steps, layers, heads, ...): NaN for layers that did not run, means over the modules of a layer."""
        if not self._found:
            raise self._subject.no_call()
        some = next(iter(self._found.values()))[0]
        steps = 1 + max(step for step, _ in self._found)
        cell = {}
        for name, value in some.items():
            whole = torch.full((steps, self._subject.shape.layers, *value.shape), torch.nan, dtype=torch.float64)
            for (step, layer), several in self._found.items():
                whole[step, layer] = torch.stack([found[name] for found in several]).mean(dim=0)
            cell[name] = whole
        return cell
