"""What is drawn of measurements, as types: probing draws pictures, so no picture imports probing."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from freeloc.profile.schema import Profile


class Table(Protocol):
    """What is asked of a `freeloc.probing.Table` here."""

    @property
    def values(self) -> Tensor:
        """One number per place."""

    @property
    def axes(self) -> Mapping[str, Sequence[object]]:
        """Labels by name, in the order of the tensor's axes."""

    def over(self, *axes: str) -> "Table":
        """Mean over all axes but these."""


class Summary(Protocol):
    """What is asked of a `freeloc.probing.Summary` here: (layers,) numbers and their standard errors."""

    @property
    def position(self) -> Tensor:
        """Sensitivity to positions."""

    @property
    def context(self) -> Tensor:
        """Sensitivity to context."""

    @property
    def position_error(self) -> Tensor:
        """Its standard error."""

    @property
    def context_error(self) -> Tensor:
        """Its standard error."""


class Facts(Protocol):
    """What is asked of `freeloc.probing.ProbeFacts` here."""

    @property
    def profile(self) -> Profile:
        """That the model was probed with."""


class Sensitivity(Protocol):
    """What is asked of a `freeloc.probing.Sensitivity` here."""

    @property
    def facts(self) -> Facts:
        """What was probed."""

    def table(self, name: str) -> Table:
        """One table."""

    def summary(self, depth: str | None = None) -> Summary:
        """The numbers of one depth."""
