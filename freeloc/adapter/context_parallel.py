"""ContextParallel: where a model library stores over which processes it splits the sequence of tokens."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from freeloc.adapter.checks import check_types


@dataclass(frozen=True)
class ContextParallel:
    """Where an attention module finds the device meshes over which its library splits the sequence of tokens.

    A `torch.distributed.device_mesh.DeviceMesh` is read when the module runs. It may be missing, or have one process.

    >>> ContextParallel(ulysses=("processor.config.ulysses_mesh",), ring=("processor.config.ring_mesh",))
    ContextParallel(ulysses=('processor.config.ulysses_mesh',), ring=('processor.config.ring_mesh',))

    Args:
        ulysses: attribute paths, from the attention module, of the mesh whose processes exchange tokens for heads: each
            computes some heads over the whole sequence.
        ring: attribute paths of the mesh whose processes pass keys and values on. freeloc refuses it.
    """

    ulysses: tuple[str, ...]
    ring: tuple[str, ...]

    def __post_init__(self) -> None:
        check_types(self)


def mesh_at(module: nn.Module, paths: tuple[str, ...]) -> Any:
    """The first device mesh of several processes at these attribute paths of a module, or None."""
    for path in paths:
        found: Any = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None and found.size() > 1:
            return found
    return None
