"""Kernel: how an adapter describes the function that computes attention."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from freeloc.adapter.checks import check_types, require

Layout = Literal["b h l d", "b l h d", "b l (h d)"]
"""einops order of batch, heads, tokens and channels of a head."""


_SDPA, _MATMUL = "torch.nn.functional.scaled_dot_product_attention", "torch.matmul"


@dataclass(frozen=True)
class Kernel:
    """The function that computes softmax(q k^T) v: its name, the layout of its tensors, the names of its arguments.

    Args:
        function: ``"torch.nn.functional.scaled_dot_product_attention"``; or ``"torch.matmul"`` for a module that
            computes both products itself; or a function's name in the file that defines the module; or, for another
            file, ``"package.module:name"``; or, with a dot before it, the path of an attribute of the attention module,
            ``".attention_function"``: a function, a module, or another callable that it holds.
        also: ``"package.module:name"`` in a further file that may call the function in its place while the module runs,
            such as that of sequence parallelism; if it is imported then.
        layout: einops order of the axes of query, key and value.
        output: einops order of the axes of the output, if it is another.
        output_parts: whether the output is a tuple of as many tensors as a query that has several names.
        heads: name of the argument that holds the number of heads, if and only if `layout` joins them with the
            channels: ``"b l (h d)"``.
        arguments: names of all arguments, in order. Those that no other field names do not change the result, such as
            a choice of precision. A call with an argument that is not named here is refused.
        query, key, value: names of these arguments; or for each the names of several, such as those of the video and of
            the text, ``("q.0", "q.1")``, which the function joins along the tokens in this order.
        mask, scale: names of these arguments.
        valid_keys: name of the argument that holds the number of valid leading keys of each sample.
        segments: name of the argument that holds the cumulative lengths [0, valid, all, all + valid, ...]: for each
            sample in turn, its valid tokens and its padding.
        neutral: arguments that must have this value (or be left out), since freeloc does not support another.
        required: arguments that must be given, with this value, such as ``{"skip_reshape": True}`` where `layout` is
            that of such calls only.
        mask_axes: einops axes of a mask that has as many: batch, queries and keys, ``"b q k"`` or ``"b k"``; or
            ``"b t"`` for the keys of the text only, where all tokens of the video are seen. Any other mask broadcasts
            to (batch, heads, queries, keys), as in PyTorch's own function.

    Each name of an argument may be the path of an item or attribute of one, such as ``"options.heads"``.
    """

    function: str
    layout: Layout
    arguments: tuple[str, ...]
    output: Literal["", "b h l d", "b l h d", "b l (h d)"] = ""
    query: str | tuple[str, ...] = "query"
    key: str | tuple[str, ...] = "key"
    value: str | tuple[str, ...] = "value"
    mask: str | None = None
    scale: str | None = None
    valid_keys: str | None = None
    segments: str | None = None
    neutral: Mapping[str, object] = field(default_factory=dict)
    required: Mapping[str, object] = field(default_factory=dict)
    heads: str | None = None
    mask_axes: Literal["", "b q k", "b k", "b t"] = ""
    output_parts: bool = False
    also: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.function in (_SDPA, _MATMUL) or re.fullmatch(r"\w+|[\w.-]+:\w+|(\.\w+)+", self.function),
            "Kernel.function",
            "the name of a function in the file of the attention module, 'package.module:name', or an attribute of the "
            "module, '.name'",
            self.function,
        )
        also = not self.also or re.fullmatch(r"[\w.-]+:\w+", self.also)
        require(also, "Kernel.also", "'package.module:name'", self.also)
        require(
            bool(self.heads) == (self.layout == "b l (h d)"),
            "Kernel.heads",
            "the argument that holds the number of heads, such as 'heads', if and only if the layout is 'b l (h d)'",
            self.heads,
        )
        values = [("neutral", name) for name in self.neutral] + [("required", name) for name in self.required]
        for word, name in [*self.named(), *values]:
            root = name.partition(".")[0]
            known = f"one of its arguments {self.arguments}, or an item of one"
            require(root in self.arguments, f"Kernel.{word}", known, name)
        both = sorted(set(self.neutral) & set(self.required))
        require(not both, "Kernel.required", "arguments that are not in neutral too", both)
        counts = {len(parts(names)) for names in (self.query, self.key, self.value)}
        same = "as many names of queries as of keys and of values"
        require(len(counts) == 1, "Kernel.query", same, (self.query, self.key, self.value))
        several = "several names of queries, as in query=('q.0', 'q.1')"
        require(not self.output_parts or max(counts) > 1, "Kernel.output_parts", several, self.query)
        require(self.mask or not self.mask_axes, "Kernel.mask_axes", "'' without a mask", self.mask_axes)

    def named(self) -> list[tuple[str, str]]:
        """(word that names it, path) of each argument that freeloc reads."""
        words = ("query", "key", "value", "mask", "scale", "valid_keys", "segments", "heads")
        return [(word, name) for word in words for name in parts(getattr(self, word) or ())]


def parts(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names of a query, key or value that may have several."""
    return (names,) if isinstance(names, str) else names


SDPA = Kernel(
    function=_SDPA,
    layout="b h l d",
    arguments=("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    mask="attn_mask",
    scale="scale",
    neutral={"dropout_p": 0.0, "is_causal": False, "enable_gqa": False},
)
"""PyTorch's own attention function."""

MATMUL = Kernel(_MATMUL, layout="b h l d", arguments=("query", "key", "value", "scale"), scale="scale")
"""A module that computes ``softmax(q @ k.mT) @ v`` itself, with q scaled before."""
