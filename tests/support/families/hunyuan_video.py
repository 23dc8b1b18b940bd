"""HunyuanVideo and HunyuanVideo 1.5: rope_axes_dim (8, 8, 8), theta 256, interleaved, video first."""

from dense import Facts, axis_by_axis, blocks, frequencies, interleaved


def facts(*paths: str) -> Facts:
    temporal, spatial = axis_by_axis(*[frequencies(8, 256.0)] * 3)
    return Facts(blocks(*paths), interleaved(24), temporal, spatial)


FACTS = {
    "hunyuan-video": facts("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    "hunyuan-video-i2v": facts("transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    "hunyuan-video-1.5": facts("transformer_blocks.*.attn"),
}
