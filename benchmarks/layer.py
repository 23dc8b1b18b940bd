"""Attention of one layer under plans, in this checkout of freeloc or in an older one, on the same tensors."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from memory import Use, use_of
from sides import require_freeloc_here, serve
from timing import milliseconds
from torch import Tensor

from freeloc import FramePlan

TRAINED = 21
"""Latent frames of Wan2.1's training clips."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of (batch, heads, tokens, head_dim) query, key and value."""


@dataclass(frozen=True)
class Size:
    """The size of a call, batch 1.

    Args:
        frames, height, width: grid of the video tokens.
        heads, head_dim: heads, and channels of each.
        dtype: name of a dtype.
        device: "cuda" or "cpu".
    """

    frames: int
    height: int
    width: int
    heads: int
    head_dim: int
    dtype: str
    device: str

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Tokens of the video."""
        return self.frames * self.tokens_per_frame

    @property
    def mib(self) -> float:
        """Size of one of the tensors, which are query, key, value and output."""
        return self.heads * self.tokens * self.head_dim * getattr(torch, self.dtype).itemsize / 2**20

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value: always the same random numbers."""
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (3, 1, self.heads, self.tokens, self.head_dim)
        dtype = getattr(torch, self.dtype)
        return torch.randn(shape, generator=generator, device=self.device, dtype=dtype).unbind()

    def described(self) -> dict[str, Any]:
        """Columns of a table."""
        of = asdict(self) | {"tokens_per_frame": self.tokens_per_frame, "tokens": self.tokens}
        return {name: of[name] for name in ("frames", "tokens_per_frame", "tokens", "heads", "head_dim", "dtype")}


def attend_under(plan: FramePlan, size: Size, backend: str = "auto") -> Attend:
    """Attention under a plan, by whatever function this checkout has for it, with the temporal RoPE of Wan."""
    try:
        from freeloc import attend_layer
        from freeloc.adapter import TemporalRope
    except ImportError:  # freeloc 0.1
        from freeloc.rotation import PlanTables

        from freeloc import TemporalRope
        from freeloc.attention import TokenLayout, attend

        tables = PlanTables(plan, TemporalRope(channels=_temporal(size.head_dim)), size.head_dim)
        layout = TokenLayout(size.frames, size.height, size.width)
        return lambda query, key, value: attend(query, key, value, tables, layout)
    rope = TemporalRope(channels=_temporal(size.head_dim))
    grid = size.frames, size.height, size.width
    return lambda query, key, value: attend_layer(plan, 0, query, key, value, grid=grid, rope=rope, backend=backend)


def _temporal(head_dim: int) -> int:
    """Channels of Wan's temporal RoPE: 44 of 128."""
    return head_dim - 4 * (head_dim // 6)


def write_plans(plans: Mapping[str, FramePlan], path: Path) -> None:
    """Write plans as tables, so that another checkout executes the same ones."""
    torch.save({name: (plan.positions, plan.visibility, plan.stripe) for name, plan in plans.items()}, path)


def read_plans(path: Path) -> dict[str, FramePlan]:
    """The plans that `write_plans` wrote."""
    return {name: FramePlan(*tables) for name, tables in torch.load(path).items()}


class Worker:
    """What the side of an older checkout does: it makes a size ready, then times one plan at a time."""

    def __init__(self) -> None:
        self._runs: dict[str, Callable[[], Tensor]] = {}
        self._device = "cpu"

    def ready(self, size: dict[str, Any], plans: str, threads: int) -> None:
        """Make the tensors of a size and its plans ready."""
        torch.set_num_threads(threads)
        made = Size(**size)
        self._device = made.device
        tensors = made.tensors()
        known = read_plans(Path(plans)).items()
        self._runs = {name: partial(attend_under(plan, made), *tensors) for name, plan in known}

    def milliseconds(self, plan: str) -> float:
        """Time of one call."""
        return milliseconds(self._runs[plan], self._device)

    def use(self, plan: str) -> Use:
        """What else one call uses."""
        return use_of(self._runs[plan], self._device)


def work() -> None:
    """Answer the questions of `Side.ask`: ``do`` names a method of `Worker`."""
    require_freeloc_here()
    worker = Worker()
    serve(lambda do, **given: getattr(worker, do)(**given))


if __name__ == "__main__":
    work()
