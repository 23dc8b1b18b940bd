"""HunyuanVideo 1.5, whose transformer in vLLM-Omni tells its attention neither the layer nor the video's grid."""

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from freeloc.errors import LayoutError


@dataclass
class Running:
    """The forward that a transformer computes now."""

    grid: tuple[int, int, int] = (1, 1, 1)
    long: bool = False  # in compiled code, a guard on this is better than one on each grid


def watch() -> None:
    """Wrap the forward of the transformer's class: it numbers the layers once, and notes the grid. Only once."""
    from vllm_omni.diffusion.models.hunyuan_video.hunyuan_video_15_transformer import HunyuanVideo15Transformer3DModel

    forward = HunyuanVideo15Transformer3DModel.forward
    if hasattr(forward, "__wrapped__"):
        return

    @functools.wraps(forward)
    def noting(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = self.transformer_blocks[0].attn.attn.attention
        if not hasattr(first, "running"):  # another model of this process, with another backend
            return forward(self, hidden_states, *args, **kwargs)
        if first.running is None:
            running = Running()
            for number, block in enumerate(self.transformer_blocks):
                block.attn.attn.attention.layer, block.attn.attn.attention.running = number, running
        running, patch = first.running, (self.patch_size_t, self.patch_size, self.patch_size)
        frames, rows, columns = (size // own for size, own in zip(hidden_states.shape[2:], patch, strict=True))
        running.grid, running.long = (frames, rows, columns), frames > first.model.trained_frames
        try:
            return forward(self, hidden_states, *args, **kwargs)
        finally:
            running.long = False

    HunyuanVideo15Transformer3DModel.forward = noting


def text_and_mask(metadata: Any, video: int, tokens: int) -> tuple[int, Tensor | None]:
    """How many text tokens there are after those of the video, and a mask (batch, 1, 1, tokens)."""
    joint = None if metadata is None else metadata.joint_query
    text = tokens - video if joint is None else joint.shape[1]
    if video + text != tokens:
        raise LayoutError(
            f"expected {video} tokens of a video, a number that ulysses_degree divides, found {tokens - text} with "
            "padding: choose another size or number of frames, or another ulysses_degree"
        )
    mask = None if metadata is None else metadata.attn_mask
    return text, None if mask is None else mask[:, None, None, :].bool()
