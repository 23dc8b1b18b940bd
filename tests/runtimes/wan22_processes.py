"""One of two processes that share Wan 2.2 as its programs do: wan22_processes.py FOLDER."""

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import wan22_source as source
from conftest import make_profile
from original_wan import difference

import freeloc
from freeloc.testing import noise, random_model

FRAMES, HEIGHT, WIDTH = 12, 2, 3


def inputs(frames, padding=0):
    """A video, and padding such that two processes have equally many tokens."""
    tokens = frames * HEIGHT * WIDTH + padding
    video = [noise(4, frames, 2 * HEIGHT, 2 * WIDTH)]
    return {"x": video, "t": torch.tensor([500.0]), "context": [noise(3, 16)], "seq_len": tokens}


def spread(model):
    """As in wan/text2video.py, but in float32."""
    parallel = importlib.import_module("wan.distributed.sequence_parallel")

    def forward(self, *args):
        return parallel.sp_attn_forward(self, *args, dtype=torch.float32)

    for block in model.blocks:
        block.self_attn.forward = types.MethodType(forward, block.self_attn)
    model.forward = types.MethodType(parallel.sp_dit_forward, model)
    return model


def all_to_all(x, scatter_dim, gather_dim, group=None):
    """Gloo has none for lists of tensors."""
    found = []
    for part in x.chunk(2, dim=scatter_dim):
        gathered = [torch.empty_like(part.contiguous()) for _ in range(2)]
        dist.all_gather(gathered, part.contiguous())
        found.append(gathered)
    return torch.cat(found[dist.get_rank()], dim=gather_dim).contiguous()


def run(model, given):
    with torch.no_grad():
        return model(**given)[0]


def main(folder: str) -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    source.load()
    importlib.import_module("wan.distributed.ulysses").all_to_all = all_to_all
    one, two = random_model(source.model), spread(random_model(source.model))
    found: dict[str, Any] = {"alone": difference(run(two, inputs(FRAMES)), run(one, inputs(FRAMES)))}
    cases = {"12 frames": (None, 0), "padded": (None, 4)}
    cases |= {policy: ({policy: [0, 1, 2, 3]}, 0) for policy in ("vrpr", "tsa", "vrpr+tsa")}
    for name, (layers, padding) in cases.items():
        profile, given = make_profile(layers), inputs(FRAMES, padding)
        before = run(one, given)
        with freeloc.patch(one, profile):
            expected = run(one, given)
        with freeloc.patch(two, profile) as patch:
            shared = run(two, given)
        found[name] = {"difference": difference(shared, expected), "correction": difference(expected, before)}
        found["report"] = str(patch.report())
    before = run(two, inputs(4))
    with freeloc.patch(two, make_profile()):
        found["short"] = difference(run(two, inputs(4)), before)

    def by_head(profile, layer, frames):
        plan = freeloc.frame_plan(profile, 0, frames)
        return [plan, freeloc.FramePlan.identity(frames)]

    try:
        with freeloc.patch(two, make_profile(), method=by_head):
            run(two, inputs(FRAMES))
        found["heads"] = "no error"
    except freeloc.errors.LayoutError as error:
        found["heads"] = str(error)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # to destroy process groups may take forever after an error


if __name__ == "__main__":
    main(sys.argv[1])
