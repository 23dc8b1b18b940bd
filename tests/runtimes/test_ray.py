"""The example with Ray in docs/how-to/serving.md: see ray.sh."""

import importlib.util
from pathlib import Path

import pytest
import torch
from test_docs import BLOCK

import freeloc
from freeloc.tiny.model import load_pipeline, noise, sample

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("default")]
if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray: run tests/runtimes/ray.sh", allow_module_level=True)

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serving.md"


def test_the_example_gives_the_videos_of_one_process():
    import ray

    (code,) = [block["text"] for block in BLOCK.finditer(PAGE.read_text()) if "import ray" in block["text"]]
    names = {"__name__": "__main__"}
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        exec(compile(code, "serving.md", "exec"), names)
        reports = ray.get([worker.report.remote() for worker in names["workers"]])
    finally:
        ray.shutdown()
    pipe = load_pipeline()
    with freeloc.patch(pipe, names["profile"]):
        wanted = [sample(pipe, [prompt], noise([seed], latent_frames=30), steps=2) for prompt, seed in names["jobs"]]
    assert all(torch.equal(video, one) for video, one in zip(names["videos"], wanted, strict=True))
    assert sum(report.corrected_calls for report in reports) == 3 * 2 * 2 * 8  # videos, steps, prompts, layers
