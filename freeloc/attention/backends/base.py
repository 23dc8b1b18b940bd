"""What a backend is: a kernel that executes plans, its name, and what it can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from freeloc.attention.layout import TokenLayout
from freeloc.attention.prepared import LayerPlan
from freeloc.errors import LayoutError


class Kernel(Protocol):
    """Attention of one layer under a plan."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: LayerPlan,
        layout: TokenLayout,
        mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        """(batch, heads, tokens, head_dim) from tensors of that shape: see `freeloc.attention.attend`."""


class Can(Protocol):
    """Whether a backend can compute a call."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, plan: LayerPlan, layout: TokenLayout, mask: Tensor | None
    ) -> str:
        """An empty text if it can, else what is in the way: "needs a CUDA device, found cpu"."""


@dataclass(frozen=True)
class Backend:
    """A kernel that executes plans. Plugins add more of them with the hook ``freeloc_backends``.

    >>> from freeloc.attention import attend, sdpa
    >>> Backend("mine", sdpa.attend, priority=None).name
    'mine'

    Args:
        name: for ``freeloc.patch(model, backend=name)``, and in the report.
        attend: computes the attention of a layer: see `Kernel`. It must equal the backend ``reference``.
        can: what it cannot do, in words, or nothing: see `Can`. By default it can compute all calls.
        priority: of the backends that can compute a call, ``backend="auto"`` takes the one with the highest; None is
            for those that are used by name alone.
        source: publication, or what it does in a few words.
    """

    name: str
    attend: Kernel
    can: Can | None = None
    priority: int | None = None
    source: str = ""


def choose(
    backends: Sequence[Backend],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan,
    layout: TokenLayout,
    mask: Tensor | None,
) -> Backend:
    """The first of these backends that can compute a call.

    Raises:
        LayoutError: if none can; the message says what is in the way of each.
    """
    refused = []
    for backend in backends:
        reason = "" if backend.can is None else backend.can(query, key, value, plan, layout, mask)
        if not reason:
            return backend
        refused.append(f"{backend.name} {reason}")
    raise LayoutError(
        f'no attention backend can compute this call: {"; ".join(refused)}. Use backend="auto", or "sdpa"'
    )
