"""Depth ``output``: perturbs one layer at a time, and measures the change of the model's output."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch

from freeloc.errors import ProbeError
from freeloc.probing import perturbations
from freeloc.probing.calls import Call
from freeloc.probing.cells import Cell
from freeloc.probing.depths.base import CONTEXT_IS_SHOWN, Depth, samples_of
from freeloc.probing.perturbations import WINDOW
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject, identity, one_layer
from freeloc.probing.table import Label, Table


@dataclass(frozen=True)
class Output(Depth):
    """Measures ||perturbed output - output|| / ||output|| of the transformer with one layer perturbed.

    The calls of a run are recorded up to the last of these steps, and then repeated with each perturbation.

    Table: ``output.change`` (layers, perturbations, steps, prompts). With `heads` also ``output.head change`` (layers,
    heads, perturbations, steps, prompts).

    Args:
        shifts: shifts of the keys, in latent frames; by default `perturbations.default_shifts`. A window is added.
        steps: denoising steps to measure; steps that a run does not have are ignored.
        heads: whether to perturb also one head of a layer at a time.
    """

    name: ClassVar[str] = "output"
    rank: ClassVar[int] = 2

    shifts: Sequence[int] | None = None
    steps: Sequence[int] = (0, 5, 10)
    heads: bool = False

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The perturbations and the steps."""
        return {"perturbations": self._names(subject), "steps": list(self.steps)}

    def measure(self, subject: Subject) -> dict[str, Table]:
        """See `Output`."""
        shape, names = subject.shape, self._names(subject)
        heads = [None, *range(shape.heads)] if self.heads else [None]
        cells = [
            f"output/{prompt:03}/{layer}{'' if head is None else f'.{head}'}/{name}"
            for prompt in range(len(subject.prompt_labels))
            for layer in range(shape.layers)
            for head in heads
            for name in names
        ]
        calls = lru_cache(maxsize=1)(lambda prompt: self._base(subject, prompt))
        found = subject.measure(cells, partial(self._change, subject, calls), "output")
        values = torch.stack([cell["change"] for cell in found.values()])  # (cells, steps)
        sizes = len(subject.prompt_labels), shape.layers, len(heads), len(names), values.shape[1]
        values = values.view(sizes).movedim(0, -1)  # (layers, whole and heads, perturbations, steps, prompts)
        axes: dict[str, list[Label]] = {"layers": list(range(shape.layers)), "heads": list(range(shape.heads))}
        axes |= {"perturbations": [*names], "steps": [*self.steps[: values.shape[3]]], "prompts": subject.prompt_labels}
        by_head = {"output.head change": Table(values[:, 1:], axes)} if self.heads else {}
        of_layers = {name: labels for name, labels in axes.items() if name != "heads"}
        return {"output.change": Table(values[:, 0], of_layers)} | by_head

    def summarize(self, measured: Measurements, heads: bool = False, rule: Rule = USUAL) -> Summary:
        """The change of the output by shifts, and by the window."""
        change = measured.table("output.head change" if heads else "output.change")
        shifted, windowed = change.without(perturbations=WINDOW), change.at(perturbations=WINDOW)
        return Summary.of_samples(samples_of(shifted, heads), samples_of(windowed, heads))

    def remark(self, measured: Measurements) -> str:
        """Why context is shown, and not used."""
        return CONTEXT_IS_SHOWN

    def _names(self, subject: Subject) -> list[str]:
        if not self.steps or min(self.steps) < 0 or list(self.steps) != sorted(set(self.steps)):
            raise ProbeError(f"expected denoising steps from 0 on, in order, found {list(self.steps)}")
        return subject.perturbations(self.shifts)

    def _base(self, subject: Subject, prompt: int) -> list[tuple[Call, torch.Tensor]]:
        """The calls of a run, and the transformer's outputs."""
        calls = subject.first_calls(prompt, self.steps)
        with subject.under(lambda layer, frames: identity(frames)):
            return [(call, call.run()) for call in calls.values()]

    def _change(self, subject: Subject, calls: Any, name: str) -> Cell:
        """Measure one perturbation."""
        _, prompt, place, kind = name.split("/")
        layer, _, head = place.partition(".")
        plan = one_layer(
            int(layer),
            lambda frames: perturbations.perturbed(kind, frames, subject.trained_frames),
            identity,
            int(head) if head else None,
            subject.shape.heads,
        )
        base = calls(int(prompt))
        with subject.under(plan):
            changes = [float((call.run() - output).norm() / output.norm()) for call, output in base]
        return {"change": torch.tensor(changes, dtype=torch.float64)}
