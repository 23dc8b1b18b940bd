"""What vLLM-Omni's own source needs of vLLM and of a platform, on a CPU. `prepare` makes `vllm_omni` importable."""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

import torch
from stubs import StandIns, bare_package
from torch import nn


def tensor_group():
    """The tensor-parallel group that vLLM-Omni has made, or None."""
    return sys.modules["vllm.distributed.parallel_state"]._TP


def tensor_rank() -> int:
    """Number of this process in it."""
    return tensor_group().rank_in_group if tensor_group() else 0


def tensor_size() -> int:
    """Number of its processes."""
    return tensor_group().world_size if tensor_group() else 1


def all_reduce(x):
    """The sum over it."""
    if tensor_size() > 1:
        torch.distributed.all_reduce(x, group=tensor_group().device_group)
    return x


class Column(nn.Linear):
    """A linear layer of which each process has some outputs."""

    parts = 1

    def __init__(self, input_size, output_size, bias=True, return_bias=True, **ignored):
        super().__init__(input_size, output_size // tensor_size(), bias)
        self.return_bias = return_bias
        for parameter in self.parameters():
            parameter.weight_loader = self.load

    def load(self, parameter, loaded, part="q"):
        """Copy the rows of this process."""
        own = parameter.data.chunk(self.parts)["qkv".index(part)]
        own.copy_(loaded.chunk(tensor_size())[tensor_rank()])

    def forward(self, x):
        out = super().forward(x)
        return (out, None) if self.return_bias else out


class QKV(Column):
    """Three of them in one."""

    parts = 3

    def __init__(self, hidden_size, head_size, total_num_heads, bias=True, **ignored):
        super().__init__(hidden_size, 3 * head_size * total_num_heads, bias)
        self.num_heads = self.num_kv_heads = total_num_heads // tensor_size()


class Row(nn.Linear):
    """A linear layer of which each process has some inputs."""

    def __init__(self, input_size, output_size, bias=True, **ignored):
        super().__init__(input_size // tensor_size(), output_size, bias)
        self.weight.weight_loader = self.load

    @staticmethod
    def load(parameter, loaded):
        """Copy the columns of this process."""
        parameter.data.copy_(loaded.chunk(tensor_size(), dim=1)[tensor_rank()])

    def forward(self, x):
        return all_reduce(nn.functional.linear(x, self.weight)) + self.bias


class Conv3d(nn.Conv3d):
    """vLLM's own."""


def make_layers(count, make, prefix):
    """All layers, since there are no stages of a pipeline."""
    return 0, count, nn.ModuleList(make(prefix=f"{prefix}.{index}") for index in range(count))


def init_logger(name):
    """A logger with vLLM's further methods."""
    logger = logging.getLogger(name)
    for level in ("debug", "info", "warning"):
        setattr(logger, f"{level}_once", getattr(logger, level))
    return logger


def resolve(path):
    """The object of a qualified name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def decorator(made=None, **ignored):
    """One that changes nothing, with arguments or without."""
    return made if made is not None else decorator


MODELS = "vllm_omni.diffusion.models"
BARE = ("vllm_omni", MODELS, f"{MODELS}.flux", f"{MODELS}.hunyuan_video", f"{MODELS}.wan2_2")
"""Packages of which only some modules are imported."""

NAMES = {
    "vllm.config": {"config": decorator},
    "vllm.config.utils": {"config": decorator},
    "vllm.distributed": {
        "get_tensor_model_parallel_rank": tensor_rank,
        "get_tensor_model_parallel_world_size": tensor_size,
        "tensor_model_parallel_all_reduce": all_reduce,
    },
    "vllm.distributed.parallel_state": dict.fromkeys(("_DP", "_EP", "_PCP", "_PP", "_TP")),
    "vllm.envs": {"VLLM_PLUGINS": None},
    "vllm.logger": {"init_logger": init_logger},
    "vllm.model_executor.layers.conv": {"Conv3dLayer": Conv3d},
    "vllm.model_executor.layers.layernorm": {"RMSNorm": nn.RMSNorm},
    "vllm.model_executor.layers.linear": {
        "ColumnParallelLinear": Column,
        "LinearBase": nn.Linear,
        "QKVParallelLinear": QKV,
        "RowParallelLinear": Row,
    },
    "vllm.model_executor.model_loader.weight_utils": {
        "default_weight_loader": lambda parameter, loaded: parameter.data.copy_(loaded),
    },
    "vllm.model_executor.models.utils": {
        "is_pp_missing_parameter": lambda name, model: False,
        "extract_layer_index": lambda prefix: int(prefix.split(".")[1]),
        "make_empty_intermediate_tensors_factory": lambda *ignored: None,
        "make_layers": make_layers,
    },
    "vllm.plugins": {"load_general_plugins": lambda: None},
    "vllm.utils.network_utils": {"get_open_port": lambda: 29500},
    "vllm.utils.import_utils": {"resolve_obj_by_qualname": resolve},
}


def source() -> Path | None:
    """The folder of the installed package, without importing it."""
    found = importlib.util.find_spec("vllm_omni")
    return Path(found.origin).parent if found and found.origin else None


def prepare() -> None:
    """Put stand-ins for vLLM in place, and a platform that computes with PyTorch."""
    folder = source()
    for name in BARE:
        bare_package(name, str(folder.joinpath(*name.split(".")[1:])))
    StandIns("vllm", "vllm_omni.quantization", names=NAMES).install()
    import vllm_omni.platforms
    from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

    class Cpu(OmniPlatform):
        """As Intel's platform selects its backends, but by default PyTorch's."""

        _omni_enum = OmniPlatformEnum.XPU
        device_type = "cpu"
        dist_backend = "gloo"

        @classmethod
        def get_diffusion_attn_backend_cls(cls, selected_backend, head_size, allow_trtllm_default=False):
            from vllm_omni.diffusion.attention.backends.registry import DiffusionAttentionBackendEnum

            name = (selected_backend or "TORCH_SDPA").upper()
            cls.validate_diffusion_attn_backend(name)
            return DiffusionAttentionBackendEnum[name].get_path()

        @classmethod
        def get_device_count(cls):
            return 0  # so that it does not look for kernels

        @classmethod
        def get_torch_device(cls, local_rank=None):
            return torch.device("cpu")

    vllm_omni.platforms._current_omni_platform = Cpu()
