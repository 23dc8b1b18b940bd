"""PatchedModel: what is known of a patched transformer, for as long as the patch is on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from freeloc.adapter.grid import GridReader
from freeloc.adapter.spec import SDPA, Adapter
from freeloc.attention.backends import Backend
from freeloc.attention.devices import OnCpu
from freeloc.attention.prepared import LayerPlans
from freeloc.interception.compiled import NOTHING, Traced
from freeloc.interception.context import ForwardContext
from freeloc.interception.watch import Observer
from freeloc.plans.method import Plans
from freeloc.registry import registry


@dataclass
class Correction:
    """What the layers of a transformer are to get.

    Args:
        label: of the profile, for messages.
        method_of: layer -> name of what it gets.
        plan: (layer, latent frames) -> its plans.
        backends: the first one that can compute a call does.
        observer: is told of every attention call; then even layers with nothing to correct are intercepted.
    """

    label: str
    method_of: Callable[[int], str]
    plan: Callable[[int, int], Plans]
    backends: Sequence[Backend]
    observer: Observer | None = None


class PatchedModel:
    """A transformer, its adapter, what its layers are to get, and its forwards that are running.

    Args:
        module: the transformer.
        adapter: describes it.
        correction: what its layers are to get.
    """

    def __init__(self, module: nn.Module, adapter: Adapter, correction: Correction) -> None:
        self.module = module
        self.adapter = adapter
        self.correction = correction
        self.running: list[ForwardContext] = []
        self.traced: Traced = NOTHING
        """Of the last forward that began, for attention modules that torch.compile traces."""
        self.places = list(adapter.places(module))
        kernels = {site.kernel.function for site in adapter.sites}
        self.is_traceable = kernels == {SDPA.function} and adapter.grid.of == "transformer"
        """Whether torch.compile may trace the hooks; where it may not, they run between compiled graphs."""
        self.reader = GridReader(adapter, module, module if adapter.grid.of == "transformer" else self.places[0][3])
        head_dim, rope = adapter.shape(module).head_dim, adapter.rope_of(module)
        with OnCpu():
            nothing = torch.zeros(1, dtype=torch.float64)
            self.frequencies = nothing if rope is None else rope.frequencies_of(module, head_dim)
        self.rope = None if rope is None else rope.resolved(head_dim)
        """With this model's numbers; None if it has none."""
        self.step = None if rope is None else rope.step
        """What says the positions per latent frame, where it is not 1."""

    @cached_property
    def plans(self) -> LayerPlans:
        """What the layers get, by length."""
        return LayerPlans(self.correction.plan, self.adapter.shape(self.module), self.rope, self.frequencies)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a pickle, which is not running: an installed adapter by its name, what follows from it not."""
        kept = {name: value for name, value in vars(self).items() if name not in ("plans", "places", "step")}
        owners = registry().adapters.owners.get(self.adapter.name, [])
        installed = any(known is self.adapter for _, known in owners)
        return kept | {"adapter": self.adapter.name if installed else self.adapter, "running": [], "traced": NOTHING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self.adapter, str):
            self.adapter = registry().adapters.get(self.adapter)  # type: ignore[assignment]  # reason: no refusal is patched
        self.step = None if self.rope is None or self.adapter.rope is None else self.adapter.rope.step
