"""Gets FastVideo's own Wan on the CPU: packages without use here are stood in for, and its SDPA backend is chosen."""

import os

import torch
import torch._dynamo
import torch._inductor
import transformers  # noqa: F401  # reason: it looks for packages that are stood in for
from absent import stand_in
from diffusers import WanPipeline  # noqa: F401

from freeloc.testing import noise, random_model

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
}


def load(world: int = 1, rank: int = 0) -> None:
    """Import it, and start its groups of processes."""
    stand_in("torchvision", "triton", "imageio", "cv2", "remote_pdb", "torchcodec", "fastvideo_kernel", "scipy")
    from fastvideo.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
    from fastvideo.platforms import current_platform

    backend = "fastvideo.attention.backends.sdpa.SDPABackend"
    communicator = "fastvideo.distributed.device_communicators.cpu_communicator.CpuCommunicator"
    type(current_platform).get_attn_backend_cls = classmethod(lambda cls, *sizes: backend)
    type(current_platform).get_device_communicator_cls = classmethod(lambda cls: communicator)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29713")
    init_distributed_environment(world_size=world, rank=rank, local_rank=rank, backend="gloo")
    initialize_model_parallel(sequence_model_parallel_size=world, backend="gloo")


def model():
    from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig, WanVideoConfig
    from fastvideo.models.dits.wanvideo import WanTransformer3DModel

    def build():
        made = WanTransformer3DModel(WanVideoConfig(arch_config=WanVideoArchConfig(**SIZES)), {})
        for name, parameter in made.named_parameters():  # its layers start uninitialized
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            else:
                torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        return made.float()

    return random_model(build)


def inputs(frames, height, width, batch=1):
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, 3, 16),
        "timestep": torch.full((batch,), 500.0),
    }


def run(model, given):
    from fastvideo.forward_context import set_forward_context

    with torch.no_grad(), set_forward_context(current_timestep=0, attn_metadata=None):
        return model(**given)
