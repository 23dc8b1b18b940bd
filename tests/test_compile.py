"""torch.compile, before and after patching, as one graph."""

import pytest
import torch
from conftest import make_profile

import freeloc

# Reason: raised inside torch._inductor and torch._dynamo on import or compilation, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("order", ["compile, then patch", "patch, then compile"])
@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "compile_repeated_blocks"])
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
