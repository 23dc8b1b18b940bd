"""The order of the tokens in a sequence: text, then the video frame by frame in raster order, then text."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Order of the tokens in a sequence: text, then the video frame by frame in raster order, then text.

    >>> TokenLayout(frames=21, height=30, width=52).tokens_per_frame
    1560
    """

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0

    @functools.cached_property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @functools.cached_property
    def video(self) -> slice:
        """Slice of the video tokens."""
        return slice(self.text_first, self.text_first + self.frames * self.tokens_per_frame)

    @functools.cached_property
    def texts(self) -> list[slice]:
        """Slices of the text tokens, before the video and after it, where there are any.

        >>> TokenLayout(frames=3, height=2, width=2, text_last=5).texts
        [slice(12, 17, None)]
        """
        both = slice(0, self.video.start), slice(self.video.stop, self.tokens)
        return [text for text in both if text.start < text.stop]

    @functools.cached_property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.text_first + self.frames * self.tokens_per_frame + self.text_last

    @functools.cached_property
    def text_at(self) -> Tensor:
        """Indices of the text tokens, (text tokens,) int64 on the CPU."""
        with torch.inference_mode(False):  # it is cached, and training may use it later
            at = torch.arange(self.tokens, device="cpu")
            return at[(at < self.video.start) | (at >= self.video.stop)]
