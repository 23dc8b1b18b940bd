"""Kandinsky: heads of 24 channels split 8 / 8 / 8, theta 10000, interleaved, positions divided by 1.5 / 2 / 2."""

import torch
from dense import Facts, axis_by_axis, blocks, frequencies, interleaved

TEMPORAL, SPATIAL = axis_by_axis(*[frequencies(8, 10_000.0) / factor for factor in (1.5, 2.0, 2.0)])


def facts(path, **changes):
    def still(table):  # of rotation matrices
        return torch.eye(2).expand_as(table)

    return Facts(blocks(path), interleaved(24), TEMPORAL, SPATIAL, rotary=("rotary_emb",), still=still, **changes)


FACTS = {
    # Rotated queries and keys are rounded to bfloat16, and so are those that the oracle rotates after it.
    "kandinsky5": facts("visual_transformer_blocks.*.self_attention", tolerance=2e-3),
    "kandinsky6": facts("visual_transformer_blocks.*.video_dec_block.self_attention"),
}
