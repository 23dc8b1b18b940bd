"""Latte: no RoPE; each place of a frame attends over time on its own."""

from dense import Facts, blocks

FACTS = {"latte": Facts.without_rope(blocks("temporal_transformer_blocks.*.attn1"), tokens="f")}
