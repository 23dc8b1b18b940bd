"""Numbers of the layers with which the blocks of a site run in parallel, as a model holds them."""

import operator
from collections.abc import Mapping, Sequence

from freeloc.errors import AdapterError


def layer_numbers(found: object, blocks: int, name: str) -> list[int]:
    """The layer of each block, from a sequence with a layer for each block, or a mapping from layers to blocks.

    >>> layer_numbers([0, 2, 4], 3, "config.layers"), layer_numbers({0: 0, 2: 1, 4: 2}, 3, "mapping")
    ([0, 2, 4], [0, 2, 4])

    Args:
        found: what the model holds.
        blocks: number of blocks.
        name: what an adapter says about it, for messages.

    Raises:
        AdapterError: if it is neither, or does not give each block one layer.
    """
    expected = (
        f"AttentionSite.layers {name}: expected a layer for each of {blocks} blocks (a sequence), or the number of the "
        "block for each layer that has one (a mapping)"
    )
    remedy = "name another attribute, or give a function of the model that returns one of these"
    try:
        if isinstance(found, Mapping):
            layer_of = {operator.index(block): operator.index(layer) for layer, block in found.items()}
            right = len(layer_of) == len(found) and layer_of.keys() >= set(range(blocks))
            numbers = [layer_of[block] for block in range(blocks)] if right else []
        elif isinstance(found, Sequence) and not isinstance(found, str):
            numbers = [operator.index(layer) for layer in found[:blocks]]
        else:
            numbers = []
    except TypeError:
        numbers = []
    if len(numbers) != blocks or min(numbers, default=0) < 0:
        raise AdapterError(f"{expected}, found {found!r}: {remedy}")
    return numbers
