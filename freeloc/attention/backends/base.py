"""Backend: a kernel that executes plans, with a name, and the calls that it supports."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from freeloc.attention.layer_plan import LayerPlan, check_call
from freeloc.attention.layout import TokenLayout
from freeloc.errors import FreelocError, LayoutError


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
    """Says whether a backend supports a call."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, plan: LayerPlan, layout: TokenLayout, mask: Tensor | None
    ) -> str:
        """An empty text if it does, else the reason why not, such as "requires a CUDA device, found cpu"."""


def on_cuda(can: Can) -> Can:
    """The same for calls on a CUDA device; other calls are refused without asking.

    >>> import torch
    >>> q = torch.ones(1, 1, 6, 16)
    >>> on_cuda(lambda *call: "")(q, q, q, None, None, None)
    'requires a CUDA device, found cpu'
    """

    return functools.partial(_can_on_cuda, can)  # which can be pickled, as patched models are


def _can_on_cuda(
    can: Can,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan,
    layout: TokenLayout,
    mask: Tensor | None,
) -> str:
    if query.device.type != "cuda":
        return f"requires a CUDA device, found {query.device.type}"
    return can(query, key, value, plan, layout, mask)


@dataclass(frozen=True)
class Backend:
    """A kernel that executes plans. Plugins register more backends with the hook ``freeloc_backends``.

    >>> from freeloc.attention import attend, sdpa
    >>> Backend("mine", sdpa.attend, priority=None).name
    'mine'

    Args:
        name: name for ``freeloc.patch(model, backend=name)``, and for the report.
        attend: function that computes the attention of a layer: see `Kernel`. It must equal the backend ``reference``.
        can: function that says whether the backend supports a call, and if not, why: see `Can`. By default it supports
            all calls.
        priority: ``backend="auto"`` chooses the backend with the highest priority that supports a call. With None, the
            backend is used by name only.
        source: publication, or what it does in a few words.

    Raises:
        FreelocError: if the name is empty, or is ``"auto"``.
    """

    name: str
    attend: Kernel
    can: Can | None = None
    priority: int | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.name == "auto":
            raise FreelocError(f"expected a backend to have a name other than 'auto', found '{self.name}'")

    def compute(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: LayerPlan,
        layout: TokenLayout,
        mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        """Call `attend`, and check its arguments and its output.

        Raises:
            LayoutError: if the number of tokens or frames does not match the layout, or the output has another shape,
                dtype or device than the queries.
        """
        check_call(query, key, plan.frames, layout)
        out = self.attend(query, key, value, plan, layout, mask, scale)
        self.check_output(out, query)
        return out

    def check_output(self, out: object, query: Tensor) -> None:
        """Raise a `LayoutError` unless an output has the shape, dtype and device of the queries."""
        if not isinstance(out, Tensor):
            raise LayoutError(f"expected the backend '{self.name}' to return a tensor, found {type(out).__name__}")
        if (out.shape, out.dtype, out.device) != (query.shape, query.dtype, query.device):
            raise LayoutError(
                f"expected the backend '{self.name}' to return {_described(query)} like the queries, found "
                f"{_described(out)}"
            )


def choose(
    backends: Sequence[Backend],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan,
    layout: TokenLayout,
    mask: Tensor | None,
) -> Backend:
    """The first of these backends that supports a call.

    Raises:
        LayoutError: if none does. The message has the reason of each.
    """
    refused = []
    for backend in backends:
        reason: object = "" if backend.can is None else backend.can(query, key, value, plan, layout, mask)
        if not isinstance(reason, str):
            raise LayoutError(
                f"expected can of the backend '{backend.name}' to return a text, what is in the way or an empty one, "
                f"found {reason!r}"
            )
        if not reason:
            return backend
        refused.append(f"{backend.name} {reason}")
    raise LayoutError(
        f'no attention backend can compute this call: {"; ".join(refused)}. Use backend="auto", or "sdpa"'
    )


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
