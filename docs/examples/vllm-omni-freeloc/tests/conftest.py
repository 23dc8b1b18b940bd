"""Doubles of what the package imports of vLLM-Omni 0.30, with its names: its tests need neither engine nor GPU."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch.nn.functional import scaled_dot_product_attention

OMNI = "vllm_omni.diffusion"


@dataclass(frozen=True)
class VideoTokenLayout:
    prefix_len: int | None = None
    latent_grid: tuple[int, int, int] | None = None
    used_len: int | None = None
    video_spans: tuple = ()


@dataclass
class AttentionMetadata:
    attn_mask: Any = None
    joint_query: Any = None
    video_layout: VideoTokenLayout | None = None


@dataclass
class AttentionConfig:
    default: Any = None
    per_role: dict = field(default_factory=dict)


class AttentionBackend:
    pass


class AttentionImpl:
    pass


class PlainImpl(AttentionImpl):
    def __init__(self, softmax_scale: float, **rest: Any) -> None:
        self.scale, self.calls = softmax_scale, 0

    def forward(self, query, key, value, attn_metadata=None):
        self.calls += 1
        parts = (x.transpose(1, 2) for x in (query, key, value))
        return scaled_dot_product_attention(*parts, scale=self.scale).transpose(1, 2)


class Plain(AttentionBackend):
    get_impl_cls = staticmethod(lambda: PlainImpl)
    supports_attention_mask = staticmethod(lambda spec: True)


class HunyuanVideo15Transformer3DModel:
    """One attention layer over a video and the text after it."""

    patch_size_t = patch_size = 1

    def __init__(self, attention: Any) -> None:
        self.transformer_blocks = [SimpleNamespace(attn=SimpleNamespace(attn=SimpleNamespace(attention=attention)))]

    def forward(self, hidden_states, given, metadata):
        return self.transformer_blocks[0].attn.attn.attention.forward(*given, metadata)


SERVER = SimpleNamespace(config=None, tensor_rank=0, ulysses_rank=0, said=[])
"""What the doubles of functions return."""

NAMES: dict[str, dict[str, Any]] = {
    "vllm.distributed": {"get_tensor_model_parallel_rank": lambda: SERVER.tensor_rank},
    "vllm.logger": {
        "init_logger": lambda name: SimpleNamespace(info=lambda text, *values: SERVER.said.append(text % values))
    },
    f"{OMNI}.attention.backends.abstract": {
        "AttentionBackend": AttentionBackend,
        "AttentionImpl": AttentionImpl,
        "AttentionMetadata": AttentionMetadata,
    },
    f"{OMNI}.attention.selector": {
        "get_attn_backend_for_capability": lambda role, config: Plain,
        "get_attn_backend_for_role": lambda role, size, config, allow_trtllm_default: (Plain, None),
    },
    f"{OMNI}.config": {"get_current_diffusion_config_or_none": lambda: SERVER.config},
    f"{OMNI}.data": {"AttentionConfig": AttentionConfig},
    f"{OMNI}.models.hunyuan_video.hunyuan_video_15_transformer": {
        "HunyuanVideo15Transformer3DModel": HunyuanVideo15Transformer3DModel
    },
    f"{OMNI}.distributed.parallel_state": {"get_ulysses_parallel_rank": lambda: SERVER.ulysses_rank},
}

for whole in NAMES:
    parts = whole.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__dict__.update(NAMES.get(name, {}))


@pytest.fixture
def server():
    """A server that loads a small Wan."""
    sizes = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 24}
    SERVER.config = SimpleNamespace(
        model="small",
        model_class_name="WanPipeline",
        tf_model_config=sizes,
        parallel_config=SimpleNamespace(ring_degree=1, allgather_degree=1),
    )
    SERVER.tensor_rank = SERVER.ulysses_rank = 0
    SERVER.said.clear()
    return SERVER
