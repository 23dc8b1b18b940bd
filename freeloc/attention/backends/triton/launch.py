"""From a call to the launch of the kernels. Only the measurements of a first call wait for the GPU."""

from contextlib import nullcontext

import torch
from torch import Tensor

from freeloc.attention.backends.triton import kernel
from freeloc.attention.backends.triton.tables import Tables, padded, tables_of
from freeloc.attention.backends.triton.tuning import Config, candidates, fastest
from freeloc.attention.layer_plan import LayerPlan
from freeloc.attention.layout import TokenLayout

COPY_TOKENS = 64
"""Tokens of a program that copies keys."""

OPTIONS = {"enable_fp_fusion": True}
"""Multiply and add in one instruction: the default up to Triton 3.9, which warns that 3.10 will have another."""

LARGE_FRAME = 1024
"""Tokens per frame from which on the best tile sizes are taken to be the same; below, for each power of two."""

SMALLEST_SCALE = 1e-30
"""A scale of 0 would make 0 times infinity of a hidden key. This one has the same result."""


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
    config: Config | None = None,
) -> Tensor:
    """See `freeloc.attention.attend`; `config` is for tests."""
    query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    tables = tables_of(plan, layout.tokens_per_frame, query)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.cuda.device(query.device) if query.device.type == "cuda" else nullcontext():
        copy = _rotated_keys(key, tables, layout) if tables.copies else key
        _attend(query, key, copy, value, out, tables, layout, _per_key(mask, query), scale, config)
    return out


def _rotated_keys(key: Tensor, tables: Tables, layout: TokenLayout) -> Tensor:
    """The keys of the video, rotated back as `Segments.copy_angles` says, (batch, heads, video tokens, head_dim)."""
    batch, heads, _, head_dim = key.shape
    tokens = layout.frames * layout.tokens_per_frame
    copy = torch.empty(batch, heads, tokens, head_dim, dtype=key.dtype, device=key.device)
    grid = (batch * heads * layout.frames * -(-layout.tokens_per_frame // COPY_TOKENS),)
    kernel.copy_kernel[grid](
        key,
        copy,
        tables.heads,
        tables.angles,
        tables.pair_of,
        tables.partners,
        *key.stride()[:3],
        *copy.stride()[:3],
        heads,
        layout.tokens_per_frame,
        layout.text_first,
        layout.frames,
        HEAD_DIM=head_dim,
        BLOCK_D=padded(head_dim),
        PAIRS=tables.pairs,
        BLOCK_N=COPY_TOKENS,
        **OPTIONS,
    )
    return copy


def _attend(
    query: Tensor,
    key: Tensor,
    copy: Tensor,
    value: Tensor,
    out: Tensor,
    tables: Tables,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float,
    config: Config | None,
) -> None:
    batch, heads, _, head_dim = query.shape
    of_mask = 0 if mask is None else kernel.BOOL.value if mask.dtype == torch.uint8 else kernel.ADDITIVE.value

    def launch(config: Config, first: int, count: int) -> None:
        kernel.attention_kernel[(count * heads * batch,)](
            *(query, key, copy, value, out, query if mask is None else mask),
            *(tables.heads, tables.lists, tables.segments, tables.angles, tables.pair_of, tables.partners),
            *(stride for tensor in (query, key, copy, value, out) for stride in tensor.stride()[:3]),
            *((0, 0, 0) if mask is None else mask.stride()),
            *(heads, layout.tokens_per_frame, layout.text_first, layout.text_last, layout.frames),
            *(max(abs(scale), SMALLEST_SCALE), first, count),
            HEAD_DIM=head_dim,
            BLOCK_D=padded(head_dim),
            PAIRS=tables.pairs,
            MASK=of_mask,
            ROTATES=tables.rotates,
            COPIES=tables.copies,
            DECAYS=tables.decays,
            BIASES=tables.biases,
            NEGATIVE=scale < 0,
            BLOCK_M=config.queries,
            BLOCK_N=config.keys,
            num_warps=config.warps,
            num_stages=config.stages,
            **OPTIONS,
        )

    def tiles(config: Config) -> int:
        of_frame, *of_text = (
            -(-tokens // config.queries) for tokens in (layout.tokens_per_frame, layout.text_first, layout.text_last)
        )
        return layout.frames * of_frame + sum(of_text)

    if config is None:
        configs = candidates(layout.tokens_per_frame, padded(head_dim))
        kind = padded(head_dim), query.dtype, tables.rotates, min(layout.tokens_per_frame, LARGE_FRAME).bit_length()
        config = fastest(configs, kind, tiles, heads * batch, launch)
    launch(config, 0, tiles(config))


def _per_key(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask of keys, (batch, heads, tokens); what is bool becomes uint8 without a copy."""
    if mask is None:
        return None
    batch, heads, tokens, _ = query.shape
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    return mask.expand(batch, heads, 1, tokens)[:, :, 0]
