"""SGLang's own Wan with small random weights, in one process or in two: what its attention makes of it."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers  # noqa: F401  # reason: before torchvision seems to be there
import torch
from stubs import StandIns
from torch import Tensor
from transformers.utils.import_utils import is_torchvision_available

is_torchvision_available()  # it remembers the answer
StandIns("flashinfer", "sgl_kernel", "torchaudio", "torchvision", "tvm_ffi", names={}).install()
torch.library.define("sgl_kernel::fused_scale_shift_cpu", "(Tensor x, Tensor scale, Tensor shift, float one) -> Tensor")
torch.library.impl("sgl_kernel::fused_scale_shift_cpu", "CPU", lambda x, scale, shift, one: x * (one + scale) + shift)
sys.path.append(str(Path(__file__).parents[2]))

from conftest import SMALL, make_wan, wan_inputs  # noqa: E402  # reason: after the stand-ins are in place
from sglang.multimodal_gen.configs.models.dits import WanVideoConfig  # noqa: E402
from sglang.multimodal_gen.configs.models.dits.wanvideo import WanVideoArchConfig  # noqa: E402
from sglang.multimodal_gen.runtime import server_args  # noqa: E402
from sglang.multimodal_gen.runtime.distributed import parallel_state  # noqa: E402
from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context  # noqa: E402
from sglang.multimodal_gen.runtime.models.dits.wanvideo import WanTransformer3DModel  # noqa: E402
from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks  # noqa: E402
from sglang.multimodal_gen.test.unit.host_sync_guard import reference_custom_ops  # noqa: E402

HEADS = 4
FACTS = {"num_layers": 4, "num_attention_heads": HEADS, "attention_head_dim": 32}
ARGUMENTS = {
    "attention_backend": "torch_sdpa",
    "enable_attention_backend_autotune": False,
    "kv_gather_degree": 1,
    "sp_split_auto": False,
}
"""The arguments of a server that these modules read."""


def groups(tp_size: int = 1, sp_size: int = 1, ulysses_degree: int = 1, **arguments: object) -> None:
    """Make the groups of processes and set a server's arguments, as a worker does."""
    server_args.set_global_server_args(SimpleNamespace(**ARGUMENTS | arguments))
    parallel_state.maybe_init_distributed_environment_and_model_parallel(
        tp_size, sp_size, ulysses_degree=ulysses_degree, dist_timeout=60
    )


def transformer(**changes: object) -> WanTransformer3DModel:
    """Their Wan with the weights of `diffusers_wan`, by its own map of names."""
    names = {name: SMALL[name] for name in ("in_channels", "out_channels", "text_dim", "freq_dim", "ffn_dim")}
    config = WanVideoConfig(arch_config=WanVideoArchConfig(**names | FACTS | changes))
    with reference_custom_ops():
        model = WanTransformer3DModel(config, hf_config={}).eval().requires_grad_(False)
    own = dict(model.named_parameters())
    for name, weight in diffusers_wan().state_dict().items():
        for pattern, new in model.param_names_mapping.items():
            if re.match(pattern, name):
                name = re.sub(pattern, new, name)
                break
        parameter = own.pop(name)
        getattr(parameter, "weight_loader", lambda into, loaded: into.data.copy_(loaded))(parameter, weight)
    assert not own, own.keys()
    model.post_load_weights()
    return model


def diffusers_wan() -> torch.nn.Module:
    """The same model in diffusers."""
    return make_wan(num_attention_heads=HEADS, attention_head_dim=32)


def output(model: WanTransformer3DModel, frames: int, split_tokens: bool = True, **changes: object) -> Tensor:
    """Of one forward. Under sequence parallelism, each process gets all tokens, or some of the latent frames."""
    given = wan_inputs(frames, **changes)
    del given["return_dict"]
    size, rank = parallel_state.get_sp_world_size(), parallel_state.get_sp_parallel_rank()
    if not split_tokens:
        given["hidden_states"] = given["hidden_states"].chunk(size, dim=2)[rank]
    batch = SimpleNamespace(enable_sequence_shard=split_tokens, enable_teacache=False, enable_spectrum=False, extra={})
    with torch.no_grad(), set_forward_context(0, None, forward_batch=batch):
        found = model(**given)
    if not split_tokens:
        parts = [torch.empty_like(found) for _ in range(size)]
        torch.distributed.all_gather(parts, found.contiguous())
        found = torch.cat(parts, dim=2)
    return found


def main(folder: str, case: str) -> None:
    """In one of two processes: the outputs at several sizes."""
    given = json.loads(case)
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": given["port"], "LOCAL_RANK": os.environ["RANK"]}
    groups(**given["groups"])
    apply_plugin_hooks()
    model = transformer()
    found = [output(model, frames, **changes) for frames, changes in given["calls"]]
    torch.save(found, f"{folder}/{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
