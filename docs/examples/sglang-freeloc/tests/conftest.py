"""Doubles of what the package imports of SGLang 0.5.23, with its names: its tests need neither engine nor GPU."""

import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

RUNTIME = "sglang.multimodal_gen.runtime"
SERVER = SimpleNamespace(ulysses=1, ring=1, ulysses_rank=0, tensor_rank=0, graph=False, split=True, hooks=[])
"""What the doubles of functions return."""


class HookType(Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"


class HookRegistry:
    @staticmethod
    def register(target, hook, kind):
        SERVER.hooks.append((target, hook, kind))


class USPAttention:
    """Plain attention, and what the hooks read."""

    sp_attention_mode, sp_attention_mode_is_auto = "ulysses", False
    num_heads, softmax_scale = 4, 24**-0.5

    def forward(self, q, k, v):
        parts = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(*parts, scale=self.softmax_scale).transpose(1, 2)


NAMES: dict[str, dict[str, Any]] = {
    f"{RUNTIME}.platforms.plugins": {"HookRegistry": HookRegistry, "HookType": HookType},
    f"{RUNTIME}.distributed.parallel_state": {
        "get_ring_parallel_world_size": lambda: SERVER.ring,
        "get_tp_rank": lambda: SERVER.tensor_rank,
        "get_ulysses_parallel_rank": lambda: SERVER.ulysses_rank,
        "get_ulysses_parallel_world_size": lambda: SERVER.ulysses,
    },
    # As if the other processes had the same tokens: this one gets all tokens, and its part of the heads.
    f"{RUNTIME}.layers.usp": {
        "_usp_input_all_to_all_qkv": lambda *parts: [
            torch.cat([x] * SERVER.ulysses, dim=1).chunk(SERVER.ulysses, dim=2)[SERVER.ulysses_rank] for x in parts
        ],
        "_usp_output_all_to_all": lambda x, head_dim: x,
    },
    f"{RUNTIME}.managers.forward_context": {
        "get_forward_context": lambda: SimpleNamespace(
            forward_batch=SimpleNamespace(enable_sequence_shard=SERVER.split)
        )
    },
    "sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph": {
        "is_in_breakable_cuda_graph": lambda: SERVER.graph
    },
}

for whole in NAMES:
    parts = whole.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__dict__.update(NAMES.get(name, {}))
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)


@pytest.fixture
def server():
    """One process without graphs."""
    SERVER.__dict__.update(ulysses=1, ring=1, ulysses_rank=0, tensor_rank=0, graph=False, split=True)
    SERVER.hooks.clear()
    return SERVER
