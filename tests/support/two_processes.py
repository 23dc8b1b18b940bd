"""Runs cases in two gloo processes, of which each has a part of a model: see `shared_models`.

A case is a dict of names and numbers, so that it fits in a command line.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def measured(cases: list[dict[str, Any]], seconds: float = 300.0) -> list[dict[str, Any]]:
    """What each case found in process 0, and ``other``, what it found in process 1."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(TESTS.parent), str(TESTS / "support"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, __file__, folder, json.dumps(cases)]
        said = [Path(folder) / f"{rank}.txt" for rank in range(2)]
        processes = []
        for rank, path in enumerate(said):
            with path.open("w") as output:
                own = environment | {"RANK": str(rank)}
                processes.append(subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(seconds) for process in processes]
        except subprocess.TimeoutExpired:
            codes = [-1, -1]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise RuntimeError(f"the processes ended with {codes}:\n" + "\n".join(path.read_text() for path in said))
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(2)]
    return [one | {"other": other} for one, other in zip(*found, strict=True)]


def main(folder: str, cases: list[dict[str, Any]]) -> None:
    """Run all cases in this process."""
    import torch
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, and it is 0 without an accelerator
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), rank=rank, world_size=2)
    from shared_models import run_case

    found: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        found.append({})
        try:
            run_case(case | {"folder": f"{folder}/{number}"}, found[-1])
        except Exception as error:
            trace = traceback.format_exc(limit=-6)
            found[-1] |= {"error": type(error).__name__, "message": str(error), "trace": trace}
        dist.barrier()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # to destroy process groups may take forever after an error


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
