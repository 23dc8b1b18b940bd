"""One of two processes that share FastVideo's Wan: fastvideo_processes.py FOLDER."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import fastvideo_source as source
import torch
import torch.distributed as dist
from conftest import make_profile
from fastvideo_source import inputs, run
from original_wan import difference

import freeloc


def main(folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    source.load(2, rank)
    model, found = source.model(), {}
    expected: dict[str, Any] = torch.load(Path(folder) / "one.pt")
    for name, (before, corrected, given) in expected.items():
        alone = run(model, given)
        with freeloc.patch(model, make_profile()) as patch:
            shared = run(model, given)
        found[name] = {"difference": difference(shared, corrected), "alone": difference(alone, before)}
        found[name]["correction"] = difference(corrected, before)
        found["report"] = str(patch.report())
    with freeloc.patch(model, make_profile()):
        short = run(model, inputs(4, 2, 3))
    found["short"] = difference(short, run(model, inputs(4, 2, 3)))
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # to destroy process groups may take forever after an error


if __name__ == "__main__":
    main(sys.argv[1])
