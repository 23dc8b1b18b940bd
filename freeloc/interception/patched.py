"""PatchedModel: the state of a patched transformer, from patching to removal."""

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
    """The plans for the layers of a transformer, and how they are computed.

    Args:
        label: name of the profile, for messages.
        method_of: layer -> name of its policy or method.
        plan: (layer, latent frames) -> the plans of the layer.
        backends: backends in order of preference; the first that supports a call computes it.
        observer: function that gets every attention call. With an observer, all layers are intercepted.
    """

    label: str
    method_of: Callable[[int], str]
    plan: Callable[[int, int], Plans]
    backends: Sequence[Backend]
    observer: Observer | None = None


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
        self.places = list(adapter.places(module))
        kernels = {site.kernel.function for site in adapter.sites}
        self.is_traceable = kernels == {SDPA.function} and adapter.grid.of == "transformer"
        """Whether torch.compile can trace the hooks. If not, they run between compiled graphs."""
        self.reader = GridReader(adapter, module, module if adapter.grid.of == "transformer" else self.places[0][3])
        head_dim, rope = adapter.shape(module).head_dim, adapter.rope_of(module)
        with OnCpu():
            nothing = torch.zeros(1, dtype=torch.float64)
            self.frequencies = nothing if rope is None else rope.frequencies_of(module, head_dim)
        self.rope = None if rope is None else rope.resolved(head_dim)
        """The temporal RoPE with this model's numbers; None if it has none."""
        self.step = None if rope is None else rope.step
        """The function that returns the positions per latent frame; None if they are 1."""

    @cached_property
    def plans(self) -> LayerPlans:
        """The prepared plans of the layers, by length."""
        return LayerPlans(self.correction.plan, self.adapter.shape(self.module), self.rope, self.frequencies)

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or pickle, without running forwards and derived values; installed adapters by name."""
        kept = {name: value for name, value in vars(self).items() if name not in ("plans", "places", "step")}
        owners = registry().adapters.owners.get(self.adapter.name, [])
        installed = any(known is self.adapter for _, known in owners)
        return kept | {"adapter": self.adapter.name if installed else self.adapter, "running": [], "traced": NOTHING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self.adapter, str):
            self.adapter = registry().adapters.get(self.adapter)  # type: ignore[assignment]  # reason: no refusal is patched
        self.step = None if self.rope is None or self.adapter.rope is None else self.adapter.rope.step
