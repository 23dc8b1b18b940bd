"""Which tile sizes: measured in the first call of a kind, on a part of that call, and kept for the process."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Config(NamedTuple):
    """Tile sizes in tokens, and how the kernel is compiled."""

    queries: int
    keys: int
    warps: int
    stages: int


Launch = Callable[[Config, int, int], None]
"""Runs the kernel with a config, from a query tile on, for so many query tiles of each head."""

SMALL_FRAMES = [Config(64, 64, 4, 3), Config(64, 32, 4, 3), Config(64, 64, 4, 2)]
LARGE_FRAMES = [Config(128, 64, 8, 3), Config(64, 64, 4, 3), Config(128, 64, 8, 2), Config(128, 32, 8, 3)]
NARROW_HEADS = [Config(128, 128, 8, 2), Config(64, 128, 4, 2)]
"""For up to 64 channels, which leave registers and shared memory for more keys."""

WAVES = 4
"""Programs per multiprocessor in a measurement."""

_chosen: dict[tuple[Any, ...], Config] = {}
# Global, since what is fastest depends on the card, and not on the model.


def candidates(tokens_per_frame: int, channels: int) -> list[Config]:
    """The configs to choose from; the first one is taken where nothing may be measured.

    >>> candidates(1560, 128)[0]
    Config(queries=128, keys=64, warps=8, stages=3)
    >>> candidates(12, 128)
    [Config(queries=16, keys=64, warps=4, stages=2)]
    """
    if tokens_per_frame <= 32:
        return [Config(16 if tokens_per_frame <= 16 else 32, 64, 4, 2)]
    if tokens_per_frame <= 128:
        return SMALL_FRAMES
    return LARGE_FRAMES + SMALL_FRAMES[1:] if channels > 64 else LARGE_FRAMES[:2] + NARROW_HEADS


def fastest(
    configs: list[Config], kind: tuple[Any, ...], tiles: Callable[[Config], int], heads: int, launch: Launch
) -> Config:
    """The config that takes the least time for a whole call, measured once for each kind of call.

    Which one that is may differ from process to process, and with it the last bits of the output. With
    ``torch.use_deterministic_algorithms(True)`` it is the first one that the card has the resources for.

    Args:
        configs: the candidates.
        kind: what the choice depends on, beside the device.
        tiles: query tiles of a head with a config.
        heads: heads times batch.
        launch: runs the kernel.
    """
    key = (torch.cuda.current_device(), *kind)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return configs[0]
        programs = WAVES * torch.cuda.get_device_properties(key[0]).multi_processor_count
        costs: list[float] = []
        for config in configs:
            every = tiles(config)
            count = min(every, -(-programs // heads))
            part = _milliseconds(launch, config, (every - count) // 2, count)  # from the middle of the video
            costs.append(part * every / count)
            if torch.are_deterministic_algorithms_enabled() and part < math.inf:
                break
        _chosen[key] = configs[costs.index(min(costs))]
    return _chosen[key]


def _milliseconds(launch: Launch, config: Config, first: int, count: int) -> float:
    """The least of three runs after the compilation; infinite if the card lacks the shared memory or registers."""
    from triton.runtime.errors import OutOfResources

    try:
        launch(config, first, count)
    except OutOfResources:
        return math.inf
    found: list[float] = []
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        launch(config, first, count)
        end.record()
        end.synchronize()
        found.append(float(start.elapsed_time(end)))
    return min(found)
