"""RunBy: how an adapter describes a function that calls the parts of a transformer, in place of its forward."""

from dataclasses import dataclass

from freeloc.adapter.checks import check_types, require


@dataclass(frozen=True)
class RunBy:
    """That a function calls the parts of the transformer one by one, and the transformer's own forward is not called.

    A forward pass begins with the call of the submodule in `TokenGrid.of`, and ends with that of `last`. Both must
    be within a call of the function. `TokenGrid.refused`, `References.frames` and `TemporalRope.step` then read the
    arguments of the function. A call of the transformer itself is still a forward pass, too.

    >>> RunBy("package.pipeline:denoise", last="head").file
    'package.pipeline'

    Args:
        function: import path of the function, ``"package.module:name"``.
        last: path of the submodule that it calls after the last block.
    """

    function: str
    last: str

    def __post_init__(self) -> None:
        check_types(self)
        parts = self.function.split(":")
        right = len(parts) == 2 and all(parts)
        require(right, "RunBy.function", "the import path of a function, 'package.module:name'", self.function)

    @property
    def file(self) -> str:
        """The module that defines the function."""
        return self.function.partition(":")[0]

    @property
    def name(self) -> str:
        """The name of the function in there."""
        return self.function.partition(":")[2]
