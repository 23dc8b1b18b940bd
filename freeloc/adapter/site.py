"""AttentionSite: how an adapter describes where a model computes attention over its video tokens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from freeloc.adapter.checks import check_types, require
from freeloc.adapter.kernel import SDPA, Kernel
from freeloc.adapter.layers import layer_numbers
from freeloc.adapter.paths import read_path
from freeloc.errors import AdapterError


@dataclass(frozen=True)
class AttentionSite:
    """Self-attention modules over the whole token grid, one per layer.

    Args:
        path: module path with one ``*`` for the index, such as ``"blocks.*.attn1"``.
        layers: for blocks that run in parallel with others, the numbers of the layers with which they do: the attribute
            path of a sequence with a layer for each block, or of a mapping from a layer to the number of the block; or
            a function of the model that returns either. By default the layers follow those of the previous sites.
        kernel: the function that the module calls; or several functions, of which it calls one or another and may lack
            some; or several descriptions of one function, of which each call is read by the first whose
            `Kernel.required` and `Kernel.neutral` values it has.
        text: where text tokens are in the sequence, if there are any.
        text_tokens: where their number is read: the name of an argument of the module, a number or a tensor (batch,
            text tokens, ...); or of one of the transformer, as ``"transformer.txt"``.
        text_mask: name of an argument of the module, (batch, text tokens), for modules that call the kernel once per
            sample, with its valid text tokens only.
        hidden_states: name of the argument of the module that holds the video's tokens, (batch, tokens, channels); by
            default its first argument.
        joint: whether that argument holds the text tokens too.
        tokens: ``"f h w"``; or ``"f"`` where each position in the frame is a sequence of its own (temporal attention).
        while_running: attributes of the module, by path, that are set to a value (an import path ``"module:name"``)
            while the module runs: for libraries that would otherwise choose a kernel that freeloc cannot intercept.
        idle: keyword argument of the module that is true in calls that compute no attention.

    The names of arguments may be those of items or attributes of arguments: ``"streams.0"``, ``"video.x"``.
    """

    path: str
    layers: str | Callable[[Any], Any] | None = None
    kernel: Kernel | tuple[Kernel, ...] = SDPA
    text: Literal["none", "first", "last"] = "none"
    text_tokens: str = ""
    text_mask: str = ""
    hidden_states: str = ""
    joint: bool = False
    tokens: Literal["f h w", "f"] = "f h w"
    while_running: Mapping[str, str] = field(default_factory=dict)
    idle: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        require(
            (self.text == "none") == (not self.text_tokens),
            "AttentionSite.text_tokens",
            "the argument that counts the text tokens, such as 'encoder_hidden_states', if and only if there is text",
            self.text_tokens,
        )
        is_text = any(kernel.mask_axes == "b t" for kernel in self.kernels)
        require(
            not is_text or self.text != "none", "AttentionSite.text", "'first' or 'last' with a mask 'b t'", self.text
        )
        one = self.path.split(".").count("*") == self.path.count("*") == 1
        require(one, "AttentionSite.path", "one * for the number of the block, as in 'blocks.*.attn'", self.path)
        for attribute, value in self.while_running.items():
            name = f"AttentionSite.while_running[{attribute!r}]"
            require(
                ":" in value, name, "the import path of a value, 'package.module:NAME', as in 'builtins:False'", value
            )

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The descriptions of the function that the module calls."""
        return self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)

    def modules(self, model: nn.Module) -> Iterator[tuple[int | None, str, nn.Module]]:
        """(number of the layer it runs in parallel with or None, path, module) of every module that `path` matches."""
        before, after = self.path.split("*")
        try:
            blocks = model.get_submodule(before.rstrip("."))
        except AttributeError as error:
            raise AdapterError(
                f"{type(model).__name__} has no '{before.rstrip('.')}', where its adapter expects {self.path}"
            ) from error
        names = [name for name, _ in blocks.named_children()]
        numbers: list[int] | list[None] = [None] * len(names)
        if self.layers is not None:
            is_path = isinstance(self.layers, str)
            held = read_path(model, self.layers) if isinstance(self.layers, str) else self.layers(model)
            numbers = layer_numbers(held, len(names), repr(self.layers) if is_path else "(a function)")
        for number, name in zip(numbers, names, strict=True):
            path = f"{before}{name}{after}"
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise AdapterError(f"{type(model).__name__} has no '{path}', which its adapter expects") from error
            yield number, path, module
