"""torch.compile, before and after patching, as one graph."""

import pytest
import torch
from conftest import make_profile, make_wan

import freeloc

# Reason: raised inside torch._inductor and torch._dynamo on import or compilation, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("order", ["compile, then patch", "patch, then compile"])
@pytest.mark.parametrize(
    "how", [pytest.param("torch.compile", marks=pytest.mark.slow), "model.compile", "compile_repeated_blocks"]
)
def test_fullgraph_in_either_order(small_wan, run, order, how):
    plain = {frames: run(small_wan, frames) for frames in (3, 9)}
    with freeloc.patch(small_wan, make_profile()):
        corrected = {frames: run(small_wan, frames) for frames in (9, 12)}

    def compiled():
        options = {"fullgraph": True, "backend": "inductor" if how == "torch.compile" else "eager"}
        if how == "torch.compile":
            return torch.compile(small_wan, **options)
        getattr(small_wan, how.removeprefix("model."))(**options)
        return small_wan

    if order == "compile, then patch":
        model = compiled()
        assert (run(model, 9) - plain[9]).abs().max() <= 2e-5
        patch = freeloc.patch(model, make_profile())
    else:
        patch = freeloc.patch(small_wan, make_profile())
        model = compiled()
    for frames, expected in ((9, corrected[9]), (3, plain[3]), (12, corrected[12]), (9, corrected[9])):
        assert (run(model, frames) - expected).abs().max() <= 2e-5, frames
    assert patch.report().layers[0].calls == {9: 2, 12: 1}
    patch.remove()
    assert (run(model, 9) - plain[9]).abs().max() <= 2e-5


def test_a_compiled_model_and_its_original_take_turns(small_wan, run):
    with freeloc.patch(small_wan, make_profile()):
        corrected = {frames: run(small_wan, frames) for frames in (6, 9, 12)}
    with freeloc.patch(small_wan, make_profile()):
        compiled = torch.compile(small_wan, fullgraph=True, backend="eager")
        for model, frames in ((small_wan, 9), (compiled, 12), (small_wan, 6), (compiled, 9), (small_wan, 12)):
            assert (run(model, frames) - corrected[frames]).abs().max() <= 2e-5, frames


def test_a_deep_model_is_compiled_once_not_once_per_layer(run):
    model = make_wan(num_layers=12)
    profile = make_profile({"vrpr": list(range(11)), "tsa": [11]})
    with freeloc.patch(model, profile):
        expected = run(model, 9)
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch._dynamo.utils.counters.clear()
        assert (run(model, 9) - expected).abs().max() <= 2e-5
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        for frames in (5, 6, 7, 8, 10, 11):
            run(model, frames)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the second one for any length
