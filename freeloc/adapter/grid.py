"""TokenGrid: how an adapter describes where the numbers of latent frames, rows and columns are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from freeloc.adapter.checks import check_types, require


@dataclass(frozen=True)
class References:
    """Reference images that lie on the axis of latent frames, beside the frames of the video.

    They are not counted in a video's length, every frame attends to them, and they attend to every frame.

    Args:
        place: whether they are the first or the last latent frames.
        frames: their number, or a function of the arguments of the transformer, by name, that returns it.
        caller: name of a local variable of the pipeline's call that holds their number, or of its attribute
            (``"state.num_images"``); or several such names, for pipelines that differ. Where it cannot be read, none
            are counted, and `Patch.report` says so.
        apart: whether the model embeds them apart, so that the argument of the grid does not hold them. They have as
            many tokens as a frame of the video, and the times before its first or after its last one.
        present: attribute path that is false or None on models of the class that take no such references.
    """

    place: Literal["first", "last"] = "first"
    frames: int | Callable[[Mapping[str, Any]], int] | None = None
    caller: str | tuple[str, ...] = ""
    apart: bool = False
    present: str = ""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class TokenGrid:
    """Where freeloc reads the number of latent frames, and the height and width in tokens.

    Args:
        argument: name of a forward argument of the transformer (or of another module, see `of`); or three names of
            arguments that hold the numbers of latent frames, rows and columns; or ``"output"`` for what the module in
            `of` returns. Here and in `coordinates` and `refused`, a name may be that of an item or an attribute of an
            argument: ``"x.0"``, ``"video.positions"``.
        axes: einops names of the argument's axes, ``f h w`` among them; ``"sample (f h w)"`` for sizes per sample;
            ``"sample token (f h w)"`` for a table of every token's coordinates.
        patch: size of a patch (frames, height, width) that divides those axes: an attribute path of the model, or for
            each axis a number or a path. The last patch may be incomplete along frames. None counts as 1.
        of: the module whose forward has the argument: ``"transformer"``, ``"attention"`` for the attention modules
            themselves, or the path of a submodule of the transformer, such as its patch embedding, which also sees
            padding and frames that the transformer appends.
        coordinates: name of an argument (batch, 3, tokens) or (batch, 3, tokens, start and end) with the coordinates
            of each token in time, height and width, which callers may give instead of the other arguments.
        references: reference images on the axis of latent frames; several if there are several kinds; None if the
            model has none.
        largest_frames: where the model has positions for a limited number of latent frames: the attribute path of that
            number, or a function that returns it from the model and the arguments of its forward; and the name of what
            has to be larger for longer videos: ``("rope.freqs_cos.shape.0", "rope_max_seq_len")``. A longer call, with
            which the model itself fails, gets an error with both.
        refused: arguments of the transformer that change the order of tokens, each with the reason. A call beyond the
            trained length is refused unless they are None or left at their default.
    """

    argument: str | tuple[str, str, str] = "hidden_states"
    axes: str = "b c f h w"
    patch: str | tuple[int | str, int | str, int | str] = "config.patch_size"
    of: str = "transformer"
    coordinates: str = ""
    references: References | tuple[References, ...] | None = None
    largest_frames: tuple[str | Callable[[Any, Mapping[str, Any]], int], str] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        if self.of == "attention":
            right, expected = (
                self.axes == "sample (f h w)",
                "'sample (f h w)', the table that an attention module receives",
            )
        else:
            named = sorted(name for name in self.axes.split() if name in ("f", "h", "w"))
            packed = not isinstance(self.argument, str)  # then three numbers give the grid, not axes
            right = packed or named == ["f", "h", "w"] or self.axes == "sample token (f h w)"
            expected = "each axis of the argument by a name, frames f, rows h and columns w, as in 'b c f h w'"
        require(right, "TokenGrid.axes", expected, self.axes)
        of_output = self.argument == "output" and self.of in ("transformer", "attention")
        require(not of_output, "TokenGrid.of", "the path of the submodule that returns the output", self.of)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return (self.argument,) if isinstance(self.argument, str) else self.argument

    @property
    def kinds_of_references(self) -> tuple[References, ...]:
        """The kinds of reference images."""
        known = self.references
        return known if isinstance(known, tuple) else () if known is None else (known,)

    @property
    def submodule(self) -> str:
        """Path of the submodule whose call has the grid; empty if it is in the call of another module."""
        return "" if self.of in ("transformer", "attention") else self.of
