"""The hooks: they number the attention layers of Wan, note the grid of each forward, and correct long videos."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freeloc.errors import AdapterError, FreelocError, LayoutError
from freeloc.layer import ModelAttention
from sglang_freeloc import VARIABLE, WAN, logger


@dataclass
class Running:
    """The forward that a transformer computes now."""

    model: ModelAttention
    grid: tuple[int, int, int] = (1, 1, 1)
    long: bool = False  # in compiled code, a guard on this is better than one on each grid


@dataclass(frozen=True)
class Layer:
    """What an attention module of the video knows."""

    running: Running
    number: int


def require_known(model: Any, *args: Any, **kwargs: Any) -> None:
    """Before a diffusion transformer is made: refuse it if it would not be corrected."""
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if name != WAN:
        raise AdapterError(
            f"freeloc does not correct SGLang's {type(model).__qualname__}, only its WanTransformer3DModel (Wan 2.1 "
            f"and 2.2: text, image, TI2V): unset {VARIABLE}"
        )


def number_layers(result: None, model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    """After SGLang's Wan is made: choose the profile, and tell each layer its number."""
    chosen = os.environ.get(VARIABLE)
    profile = None if chosen in (None, "", "auto") else chosen
    sizes = config.num_layers, config.num_attention_heads, config.attention_head_dim
    model.freeloc_running = running = Running(_model_attention(*sizes, profile))
    for index, block in enumerate(model.blocks):
        kind = type(block.attn1).__name__
        if kind != "USPAttention":
            raise AdapterError(
                f"expected USPAttention in the blocks of SGLang's Wan, found {kind}: freeloc cannot be used together "
                f"with sparse attention; choose another --attention-backend, or unset {VARIABLE}"
            )
        block.attn1.freeloc_layer = Layer(running, index)


@functools.lru_cache(maxsize=8)
def _model_attention(layers: int, heads: int, head_dim: int, profile: str | None) -> ModelAttention:
    """One for both transformers of Wan 2.2."""
    sizes = {"layers": layers, "heads": heads, "head_dim": head_dim}
    try:
        return ModelAttention.find("wan", **sizes, profile=profile, say=logger.info)
    except FreelocError as error:
        raise type(error)(f"{error} (set {VARIABLE} to the profile's name or file)") from error


def note_grid(forward: Callable[..., Any], model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Around the forward of SGLang's Wan: note the grid of the whole video."""
    running: Running = model.freeloc_running
    frames, rows, columns = (
        size // patch for size, patch in zip(hidden_states.shape[2:], model.patch_size, strict=True)
    )
    if model.sp_size > 1 and not _tokens_are_split():
        frames *= model.sp_size  # each process has some of the latent frames
    before = running.grid, running.long
    running.grid, running.long = (frames, rows, columns), frames > running.model.trained_frames
    try:
        return forward(model, hidden_states, *args, **kwargs)
    finally:
        running.grid, running.long = before


def _tokens_are_split() -> bool:
    """Whether the transformer itself gives each process some of the tokens. Otherwise it gets some of the frames."""
    from sglang.multimodal_gen.runtime.managers.forward_context import get_forward_context

    batch = get_forward_context().forward_batch
    return batch is not None and bool(batch.enable_sequence_shard)


def attention(
    forward: Callable[..., Tensor], module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any
) -> Tensor:
    """Around an attention layer: (batch, tokens of this process, heads, head_dim) of the same."""
    layer: Layer | None = getattr(module, "freeloc_layer", None)
    if layer is None or not layer.running.long:
        return forward(module, q, k, v, *args, **kw)
    return _long(forward, module, layer, q, k, v, *args, **kw)


def not_filled(forward: Callable[..., Tensor | None], module: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """Around the shortcut that rotates while it exchanges: not for long videos."""
    layer: Layer | None = getattr(module, "freeloc_layer", None)
    return None if layer is not None and layer.running.long else forward(module, *args, **kwargs)


@torch.compiler.disable
def _long(
    forward: Callable[..., Tensor], module: Any, layer: Layer, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any
) -> Tensor:
    """A video that is longer than in training."""
    from sglang.multimodal_gen.runtime.distributed import parallel_state as state
    from sglang.multimodal_gen.runtime.layers import usp

    running = layer.running
    if not running.model.corrects(layer.number, running.grid[0]):
        return forward(module, q, k, v, *args, **kw)
    _require_plain(module, args, kw)
    devices = state.get_ulysses_parallel_world_size()
    if devices > 1:
        q, k, v = usp._usp_input_all_to_all_qkv(q, k, v)  # as SGLang itself does around its kernel
    first = 0
    if q.shape[2] != running.model.profile.model.heads:
        first = (
            state.get_tp_rank() * module.num_heads
            + (state.get_ulysses_parallel_rank() if devices > 1 else 0) * q.shape[2]
        )
    out = running.model.attend(layer.number, q, k, v, grid=running.grid, first_head=first, scale=module.softmax_scale)
    return usp._usp_output_all_to_all(out, head_dim=2) if devices > 1 else out


def _require_plain(module: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> None:
    """Require plain self-attention over tokens of which, after an exchange, each process has all."""
    from sglang.multimodal_gen.runtime.distributed import parallel_state as state
    from sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph import is_in_breakable_cuda_graph

    given = [name for name, value in kw.items() if value is not None and not (isinstance(value, int) and value == 0)]
    if args or given:
        raise LayoutError(
            f"expected attention over the video alone in a long video, found {', '.join(given) or 'more arguments'}: "
            f"unset {VARIABLE}"
        )
    if state.get_ring_parallel_world_size() > 1 or (
        module.sp_attention_mode != "ulysses" and not module.sp_attention_mode_is_auto
    ):
        raise FreelocError(
            "expected Ulysses alone, since devices can share the heads of this attention but not its tokens, found "
            "ring attention or gathered keys: start SGLang with --ulysses-degree, and --ring-degree 1"
        )
    if is_in_breakable_cuda_graph():
        raise FreelocError(
            "expected no CUDA graph around the attention of a long video: start SGLang with "
            "--enable-breakable-cuda-graph false"
        )
