import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported: two processes with all threads each are slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import pytest
import torch
from diffusers import WanTransformer3DModel

from freeloc import Profile

collect_ignore = ["attention/compile_triton.py", "attention/triton_interpreted.py"]
"""Not for this process: test_triton.py runs them in processes of their own."""
collect_ignore_glob = ["runtimes/support/*", "runtimes/*_processes.py", "runtimes/*_source.py"]
"""Not tests: what they share, which imports other projects' source."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for all tests; none beside this one for the tests of a file, which start sooner so."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes hours is not among the slow tests, also where one of its parameters is slow."""
    for item in items:
        if item.get_closest_marker("hours"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "slow"]


IS_OLD_DIFFUSERS = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 42)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a test of a model that an older diffusers, as in tests/versions, does not have yet."""
    try:
        return (yield)
    except ImportError as error:
        if IS_OLD_DIFFUSERS and "diffusers" in str(error):
            pytest.skip(f"requires a newer diffusers: {error.msg.partition(' (')[0]}")
        raise


SMALL = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
}
MIXED = {"vrpr": [0], "tsa": [1], "vrpr+tsa": [2], "none": [3]}


def make_profile(layers: dict[str, list[int]] | None = None, trained_latent_frames: int = 4, **changes: Any) -> Profile:
    """A profile for `small_wan`."""
    layers = layers or MIXED
    count = sum(len(numbers) for numbers in layers.values())
    facts = {"name": "small", "layers": count, "heads": 2, "head_dim": 24}
    content = {
        "adapter": "wan",
        "model": facts | {"trained_latent_frames": trained_latent_frames},
        "layers": layers,
        "provenance": {"kind": "default", "source": "a test"},
    }
    return Profile.model_validate(content | changes)


def make_wan(seed: int = 0, cls: type = WanTransformer3DModel, **changes: Any) -> Any:
    """A small random Wan, whose modulation and projections are large enough for attention to matter."""
    torch.default_generator.manual_seed(seed)  # which is faster: torch.manual_seed also notes a seed for GPUs
    model = cls(**(SMALL | changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if ".to_q." in name or ".to_k." in name:
            parameter.mul_(3)
    return model


def wan_inputs(frames: int, batch: int = 2, height: int = 6, width: int = 10, **changes: Any) -> dict[str, Any]:
    """Inputs of a small Wan: a grid of (frames, height / 2, width / 2) tokens."""
    generator = torch.Generator().manual_seed(frames)
    inputs = {
        "hidden_states": torch.randn(batch, 4, frames, height, width, generator=generator),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.randn(batch, 3, 16, generator=generator),
        "return_dict": False,
    }
    return inputs | changes


@pytest.fixture(autouse=True, scope="module")
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread: more do not speed up small matrices, and cost minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request.module, "THREADS", 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _small_wan() -> Any:
    return make_wan()


@pytest.fixture
def small_wan(_small_wan: Any) -> Any:
    """A model of its own for each test."""
    return copy.deepcopy(_small_wan)


@pytest.fixture
def run() -> Callable[..., torch.Tensor]:
    """Run a transformer on inputs with a number of latent frames."""

    def run_once(model: Any, frames: int, **changes: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**wan_inputs(frames, **changes))[0]

    return run_once
