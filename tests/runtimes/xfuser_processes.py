"""One of two processes that share Wan as xDiT's programs do, with Ulysses: xfuser_processes.py FOLDER.

xfuser requires a GPU, and looks for one when it is imported. Here it finds one of Apple's, which is then gone, and its
process groups are set up as on a GPU. Its runtime state, which it makes from a pipeline, is stood in for.
"""

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from absent import stand_in
from diffusers import WanTransformer3DModel
from freeloc_adapters.examples import wan

import freeloc
from freeloc.testing import random_model

SIZES = wan.SIZES | {"num_attention_heads": 4}


class State(types.SimpleNamespace):
    """The runtime state, as far as Wan asks for it."""

    def increment_step_counter(self):
        pass

    def get_cross_attention_backend(self):
        return self.attention_backend

    def advance_vsa_schedule(self, *step):
        return 0, 1


def start(folder: str) -> Any:
    """Import xfuser, set up its groups, and return its class."""
    stand_in("triton", "distvae", "flydsl")
    available, torch.backends.mps.is_available = torch.backends.mps.is_available, lambda: True
    dist.init_process_group("gloo", f"file://{folder}/store", rank=int(os.environ["RANK"]), world_size=2)
    from xfuser.core.distributed import parallel_state, runtime_state
    from xfuser.core.distributed.attention_backend import AttentionBackendType
    from xfuser.model_executor.layers import usp
    from xfuser.model_executor.models.transformers.transformer_wan import xFuserWanTransformer3DWrapper
    from yunchang.globals import PROCESS_GROUP

    for name, module in list(sys.modules.items()):
        if name.startswith("xfuser") and "HAS_LONG_CTX_ATTN" in vars(module):
            module.HAS_LONG_CTX_ATTN = True
    usp.PROCESS_GROUP = PROCESS_GROUP
    parallel_state.init_distributed_environment(rank=dist.get_rank(), world_size=2, backend="gloo")
    parallel_state.initialize_model_parallel(sequence_parallel_degree=2, ulysses_degree=2, backend="gloo")
    torch.backends.mps.is_available = available
    runtime_state._RUNTIME = State(
        attention_backend=AttentionBackendType.SDPA,
        runtime_config=types.SimpleNamespace(use_spargeattn_head_balance=False),
        fp8_comms=None,
    )
    return xFuserWanTransformer3DWrapper


def by_head(profile, layer, frames):
    plan = freeloc.frame_plan(profile, layer=layer, frames=frames)
    return [plan if head % 2 else freeloc.FramePlan.identity(frames) for head in range(4)]


def difference(one, other):
    return float((one - other).abs().max())


def run(model, grid):
    with torch.no_grad():
        return model(**wan.inputs(*grid, 1), return_dict=False)[0]


def main(folder: str) -> None:
    cls = start(folder)
    one, two = random_model(lambda: WanTransformer3DModel(**SIZES)), random_model(lambda: cls(**SIZES))
    two.load_state_dict(one.state_dict())
    profile = freeloc.default_profile(one, "vrpr+tsa", trained_latent_frames=4)
    cases: dict[str, Any] = {
        "vrpr+tsa": ((8, 4, 6), None),
        "tsa": ((8, 4, 6), "tsa"),
        "vrpr": ((8, 4, 6), "vrpr"),
        "short": ((4, 4, 6), None),
        "heads": ((8, 4, 6), by_head),
        "odd": ((7, 3, 5), None),
    }
    found: dict[str, Any] = {}
    for name, (grid, method) in cases.items():
        before = run(one, grid)
        with freeloc.patch(one, profile, method=method):
            expected = run(one, grid)
        alone = run(two, grid)
        found[name] = {"correction": difference(expected, before), "alone": difference(alone, before)}
        try:
            with freeloc.patch(two, profile, method=method) as patch:
                out = run(two, grid)
            found[name] |= {"difference": difference(out, expected), "report": str(patch.report())}
            found[name]["is_unchanged"] = torch.equal(out, alone)
        except freeloc.errors.LayoutError as error:
            found[name]["error"] = str(error)
        dist.barrier()
    (Path(folder) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # to destroy process groups may take forever after an error


if __name__ == "__main__":
    main(sys.argv[1])
