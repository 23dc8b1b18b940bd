"""Finds which arguments of an attention module count its text, hold its tokens, or hold its rotary tables."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.tables import tables_in
from freeloc.errors import LayoutError
from freeloc.inspection.rope_search import FoundRope
from freeloc.inspection.subject import inside
from freeloc.interception.rotation import Rotation, TableRows, read_rotation
from freeloc.interception.watch import AttentionCall
from freeloc.plans.length import VideoLength

OF_TEXT = re.compile("te?xt|encoder|context|prompt|caption|cond")
"""Names that arguments with text often have; they decide between arguments that would all fit."""


@dataclass(frozen=True)
class FoundArguments:
    """The arguments of an attention module that an adapter names. Each is empty if there is none.

    Args:
        text_tokens, text_mask, hidden_states, joint: as in `freeloc.adapter.AttentionSite`.
        unknown: what was not found, and why.
    """

    text_tokens: str = ""
    text_mask: str = ""
    hidden_states: str = ""
    joint: bool = False
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        mask = f", its valid tokens in {self.text_mask}" if self.text_mask else ""
        joint = ", in one argument with the video" if self.joint else ""
        return f"its number is in {self.text_tokens}{mask}{joint}"


@dataclass(frozen=True)
class FoundTables:
    """The argument of an attention module that holds the rotary tables.

    Args:
        argument: its name.
        rows: what a row of the tables is, as in `freeloc.adapter.TemporalRope`.
    """

    argument: str
    rows: Literal["token", "position"]


def find_arguments(calls: Sequence[AttentionCall], video: int, inputs: Mapping[str, Any]) -> FoundArguments:
    """The arguments of an attention module that say how many tokens it has.

    >>> import torch
    >>> query, hidden_states, text = torch.zeros(1, 2, 7, 4), torch.zeros(1, 5, 8), torch.zeros(1, 2, 8)
    >>> given = {"x": hidden_states, "txt": text}
    >>> find_arguments([AttentionCall("attn", "sdpa", query, query, query, given=given)], video=5, inputs={})
    FoundArguments(text_tokens='txt', text_mask='', hidden_states='', joint=False, unknown=())

    Args:
        calls: the kernel calls of one call of the module.
        video: number of video tokens in a sequence.
        inputs: the arguments of the transformer, without the video.
    """
    path, given = calls[0].path, dict(inside(calls[0].given))
    texts = [call.query.shape[2] - video for call in calls]
    mask, unknown = "", []
    if len(calls) > 1 and all(len(call.query) == 1 for call in calls):  # once per sample, with its valid text only
        mask = _mask(given, texts)
        if not mask and len(set(texts)) > 1:
            unknown.append(f"text_mask: no argument of {path} masks {texts} text tokens of the samples")
    text = given[mask].shape[1] if mask else max(texts)
    tokens = [name for name, value in given.items() if _has_tokens(value, (video, video + text))]
    first = next(iter(given), "")
    hidden = first if first in tokens else next(iter(tokens), "")
    if not hidden and isinstance(given.get(first), Tensor) and given[first].ndim == 3:
        counts = f"{video} or {video + text}" if text else str(video)
        unknown.append(f"hidden_states: no argument of {path} has {counts} tokens as its second axis")
    counted = ""
    if text:
        counted, others = _counter(text, {name: given[name] for name in given if name not in (hidden, mask)}, inputs)
        if not counted:
            unknown.append(f"text_tokens: no argument of {path}, nor of the model, has {text} text tokens")
        if others:
            unknown.append(f"text_tokens: {' and '.join(others)} of {path} may count the {text} text tokens as well")
    joint = bool(hidden) and text > 0 and given[hidden].shape[1] == video + text
    return FoundArguments(counted, mask, "" if hidden == first else hidden, joint, tuple(unknown))


def _mask(given: Mapping[str, Any], texts: Sequence[int]) -> str:
    """The argument (batch, text tokens) whose rows mask that many tokens."""
    for name, value in given.items():
        if isinstance(value, Tensor) and value.ndim == 2 and value.bool().sum(dim=1).tolist() == texts:
            return name
    return ""


def _has_tokens(value: Any, counts: Sequence[int]) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] in counts


def _counter(text: int, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The argument that has so many text tokens, and others that might as well; an empty name if there is none."""
    of_model = {f"transformer.{name}": value for name, value in inside(inputs)}
    for values in (given, of_model):
        for fits in (_is_sequence, _is_number, _is_mask):
            found = [name for name, value in values.items() if fits(value, text)]
            named = [name for name in found if OF_TEXT.search(name.removeprefix("transformer."))] or found
            if named:
                return named[0], named[1:]
    return "", []


def _is_sequence(value: Any, text: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and value.shape[1] == text


def _is_number(value: Any, text: int) -> bool:
    return type(value) is int and value == text


def _is_mask(value: Any, text: int) -> bool:
    """Of valid tokens, or of the indices of words."""
    return isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 2 and value.shape[1] == text


def find_tables(call: AttentionCall, rope: FoundRope, frames: int, video: int, is_first: bool) -> FoundTables | None:
    """The argument with rotary tables that agree with the rotation of queries and keys; None if none does.

    Args:
        call: a kernel call.
        rope: the rotation that was found.
        frames: number of latent frames.
        video: number of video tokens in a sequence.
        is_first: whether text comes before them.
    """
    described = TemporalRope(rope.channels, rope.first, rope.pairing, within=rope.within)
    frequencies, text = rope.by_head, call.query.shape[2] - video
    length, per_frame = VideoLength(frames), video // frames
    whole = range(video)
    rows = [TableRows(length, per_frame, 0, whole), TableRows(length, per_frame, text * is_first, whole, text)]
    ways: list[tuple[Literal["token", "position"], TableRows]] = [("token", rows[0]), ("token", rows[1])]
    for name, value in inside(call.given):
        tables = tables_in(described, value)
        for kind, where in (*ways, ("position", rows[0])) if tables else ():
            if _agree(tables, replace(described, table_rows=kind), call, frequencies, where):
                return FoundTables(name, kind)
    return None


def _agree(tables: list[Tensor], rope: TemporalRope, call: AttentionCall, frequencies: Tensor, rows: TableRows) -> bool:
    """Whether tables rotate the frames by these radians per latent frame, (pairs,) or (heads, pairs)."""
    try:
        found = read_rotation(tables, rope, call.query.shape[3], frequencies, 1.0, rows)
    except LayoutError:
        return False
    return found == Rotation(1.0)
