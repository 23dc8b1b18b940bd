"""Beside: how an adapter describes a second network, whose layers run beside those of a transformer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from freeloc.adapter.checks import check_types, require


@dataclass(frozen=True)
class Beside:
    """That a network runs beside a transformer, such as a ControlNet, so that its layers get the plans of those layers.

    A pipeline is patched with both. A network that is patched without its transformer has layers of its own.

    >>> Beside("my-model", layers="config.control_every_n").numbers(7, own=3)
    (0, 7, 14)

    Args:
        adapter: name of the adapter of that transformer.
        layers: attribute path of the transformer: the numbers of the layers beside which this network's layers run, or
            a number n for every n-th layer.
        of: ``"itself"`` if that path is one of this network, not of the transformer.
        argument: argument of the transformer's forward that holds the output of this network. Where `TokenGrid.refused`
            of the transformer has it too, a transformer that is patched without its second network is refused.
    """

    adapter: str
    layers: str
    argument: str = ""
    of: Literal["transformer", "itself"] = "transformer"

    def __post_init__(self) -> None:
        check_types(self)

    def numbers(self, found: object, own: int) -> tuple[int, ...]:
        """The numbers of the layers beside which `own` layers run, from what is at `layers`.

        Raises:
            AdapterError: if it is neither a number of layers nor as many numbers.
        """
        if isinstance(found, int) and found > 0:
            return tuple(range(0, own * found, found))
        numbers = tuple(found) if isinstance(found, Sequence) else ()
        right = len(numbers) >= own and all(isinstance(number, int) for number in numbers)
        expected = f"in the transformer a number n, or the numbers of {own} layers"
        remedy = "load the transformer that was trained with this network"
        require(right, f"Beside.layers {self.layers!r}", expected, found, remedy)
        return numbers[:own]
