"""Sums: the attention of many queries, to which that over more and more of their keys is added."""

import torch
from torch import Tensor

from freeloc.attention.parts import Part


def of_copies(frames: Tensor, at: slice, copies: int, step: int) -> Tensor:
    """The frames of each copy of a block: a view (copies, heads, frames, ...) of (heads, frames, ...).

    >>> of_copies(torch.arange(20).view(1, 20), slice(0, 11, 5), copies=2, step=1)
    tensor([[[ 0,  5, 10]],
    <BLANKLINE>
            [[ 1,  6, 11]]])

    Args:
        frames: (heads, frames, ...).
        at: which ones, in the first copy.
        copies: number of copies.
        step: how many frames later each copy is.
    """
    if copies == 1:
        return frames[:, at][None]
    if at.stop == at.start + 1:
        return frames[:, at.start : at.start + copies * step : step].transpose(0, 1)[:, :, None]
    windows = frames[:, at.start : at.stop + (copies - 1) * step].unfold(1, at.stop - at.start, step)
    return windows[..., :: at.step].transpose(0, 1).movedim(-1, 2)


class Sums:
    """Attention over all parts of the keys so far. It is zero at first.

    >>> from freeloc.attention.parts import attend_part
    >>> q, k, v = torch.randn(3, 1, 2, 6, 16)
    >>> sums = Sums(torch.empty(2, 1, 6, 16))
    >>> for start, stop in ((0, 2), (2, 6)):
    ...     part = attend_part(q, k[:, :, start:stop], v[:, :, start:stop])
    ...     sums.add(slice(0, 1), 1, 1, Part(part.out[:, :, None], part.lse[:, :, None]), is_first=start == 0)
    >>> torch.allclose(sums.out[:, 0], attend_part(q, k, v).out, atol=1e-6)
    True

    Args:
        out: (heads, frames, tokens, head_dim), written to, in at least float32: rounded after each part, the sum would
            be worse than attention over all keys at once.
    """

    def __init__(self, out: Tensor, lse: Tensor | None = None) -> None:
        self.out = out.zero_() if lse is None else out
        self._lse = out.new_empty(out.shape[:-1]).fill_(float("-inf")) if lse is None else lse

    def of_tokens(self, tokens: slice) -> "Sums":
        """Those of some tokens of every frame: what is added there is added here."""
        return Sums(self.out[:, :, tokens], self._lse[:, :, tokens])

    def add(self, at: slice, copies: int, step: int, part: Part, is_first: bool) -> None:
        """Add attention over more keys for some of the queries.

        Args:
            at: index of the query frames of the first copy.
            copies, step: number of copies, and how many frames later each one is.
            part: (copies, heads, frames, tokens, ...), of these queries.
            is_first: whether nothing was added to these queries before.
        """
        out, lse = (of_copies(tensor, at, copies, step) for tensor in (self.out, self._lse))
        if is_first:
            out.copy_(part.out)
            lse.copy_(part.lse)
        else:
            more = (part.lse - lse).nan_to_num_()  # two parts without visible keys both have -inf
            # Not by `lerp_`, whose two weights add up to 1 exactly: a small one would be lost.
            out.mul_((-more).sigmoid_()[..., None]).addcmul_(part.out.to(out.dtype), more.sigmoid()[..., None])
            lse.copy_(torch.logaddexp(lse, part.lse))
