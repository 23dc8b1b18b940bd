"""vLLM-Omni's own Wan and HunyuanVideo 1.5 with small random weights, in one process or in two."""

import json
import os
import sys
from pathlib import Path

import torch
import vllm_stand_in
from torch import Tensor

vllm_stand_in.prepare()
sys.path.append(str(Path(__file__).parents[2]))

from conftest import SMALL, make_wan, wan_inputs  # noqa: E402  # reason: after the stand-ins are in place
from freeloc_adapters.examples import hunyuan_video  # noqa: E402
from vllm_omni.diffusion.attention.layer import Attention  # noqa: E402
from vllm_omni.diffusion.config import set_current_diffusion_config  # noqa: E402
from vllm_omni.diffusion.data import OmniDiffusionConfig, TransformerConfig  # noqa: E402
from vllm_omni.diffusion.distributed import parallel_state  # noqa: E402
from vllm_omni.diffusion.distributed.sp_plan import SequenceParallelConfig  # noqa: E402
from vllm_omni.diffusion.forward_context import get_forward_context, set_forward_context  # noqa: E402
from vllm_omni.diffusion.hooks.sequence_parallel import apply_sequence_parallel  # noqa: E402
from vllm_omni.diffusion.models.hunyuan_video.hunyuan_video_15_transformer import (  # noqa: E402
    HunyuanVideo15Transformer3DModel,
)
from vllm_omni.diffusion.models.wan2_2.wan2_2_transformer import WanTransformer3DModel  # noqa: E402
from vllm_omni.plugins import load_omni_general_plugins  # noqa: E402

HEADS = 4
FACTS = {"num_layers": 4, "num_attention_heads": HEADS, "attention_head_dim": 24}
FREELOC = {"per_role": {"self": {"backend": "FREELOC"}}}


def config(backends: dict | None = FREELOC, pipeline: str = "WanPipeline", **parallel: int) -> OmniDiffusionConfig:
    """The configuration of a server."""
    return OmniDiffusionConfig(
        model="small",
        model_class_name=pipeline,
        tf_model_config=TransformerConfig.from_dict(FACTS),
        diffusion_attention_config=backends,
        parallel_config=parallel,
    )


def groups(store: str, rank: int = 0, world_size: int = 1, **parallel: int) -> None:
    """Make the groups of processes, as a worker does."""
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    parallel_state._WORLD = parallel_state.init_world_group(list(range(world_size)), 0, "gloo")
    parallel_state.initialize_model_parallel(backend="gloo", **parallel)


def layer(prefix: str = "blocks.2.attn1", **changes: object) -> Attention:
    """One of their attention layers."""
    settings = config(**changes)
    with set_current_diffusion_config(settings), set_forward_context(omni_diffusion_config=settings):
        return Attention(HEADS, 24, causal=False, softmax_scale=24**-0.5, prefix=prefix, role="self")


def transformer(settings: OmniDiffusionConfig) -> WanTransformer3DModel:
    """Their Wan with the weights of `theirs`, loaded by its own loader."""
    with set_current_diffusion_config(settings), set_forward_context(omni_diffusion_config=settings):
        model = WanTransformer3DModel(**SMALL | FACTS).eval().requires_grad_(False)
        loaded = model.load_weights(diffusers_wan().state_dict().items())
        assert {name for name, _ in model.named_parameters()} <= loaded
        _share(model, settings)
    return model


def hunyuan(settings: OmniDiffusionConfig) -> HunyuanVideo15Transformer3DModel:
    """Their HunyuanVideo 1.5 with the weights of `diffusers_hunyuan`."""
    theirs = diffusers_hunyuan()
    settings.set_tf_model_config(TransformerConfig.from_dict(dict(theirs.config)))
    known = HunyuanVideo15Transformer3DModel.__init__.__code__.co_varnames
    sizes = {name: value for name, value in theirs.config.items() if name in known}
    with set_current_diffusion_config(settings), set_forward_context(omni_diffusion_config=settings):
        model = HunyuanVideo15Transformer3DModel(settings, **sizes).eval().requires_grad_(False)
        loaded = model.load_weights(theirs.state_dict().items())
        assert {name for name, _ in model.named_parameters()} <= loaded
        _share(model, settings)
    return model


def _share(model: torch.nn.Module, settings: OmniDiffusionConfig) -> None:
    """Give each process its tokens, as their loader does."""
    if settings.parallel_config.sequence_parallel_size > 1:
        degrees = SequenceParallelConfig(ulysses_degree=settings.parallel_config.ulysses_degree)
        apply_sequence_parallel(model, degrees, model._sp_plan)


def diffusers_hunyuan() -> torch.nn.Module:
    """The same model in diffusers."""
    return hunyuan_video.video_15()


def diffusers_wan() -> torch.nn.Module:
    """The same model in diffusers."""
    return make_wan(num_attention_heads=HEADS)


def output(model: WanTransformer3DModel, settings: OmniDiffusionConfig, frames: int, **changes: object) -> Tensor:
    """Of one forward."""
    with torch.no_grad(), set_forward_context(omni_diffusion_config=settings):
        get_forward_context().sp_plan_hooks_applied = settings.parallel_config.sequence_parallel_size > 1
        given = wan_inputs(frames, **changes) if isinstance(model, WanTransformer3DModel) else hunyuan_inputs(frames)
        return model(**given)[0]


def hunyuan_inputs(frames: int) -> dict:
    """Of two samples whose text has padding."""
    return hunyuan_video.video_15_inputs(frames, 2, 3, 2) | {"return_dict": False}


def main(folder: str, case: str) -> None:
    """In one of two processes: the outputs at several sizes."""
    given = json.loads(case)
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    groups(f"{folder}/store", rank, 2, **given["groups"])
    load_omni_general_plugins()
    settings = config(**given["config"])
    model = hunyuan(settings) if "Hunyuan" in settings.model_class_name else transformer(settings)
    found = [output(model, settings, frames, **changes) for frames, changes in given["calls"]]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
