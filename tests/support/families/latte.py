"""Latte: no RoPE; each spatial position of a frame attends over time separately."""

from dense import Facts, blocks

FACTS = {"latte": Facts.without_rope(blocks("temporal_transformer_blocks.*.attn1"), tokens="f")}
