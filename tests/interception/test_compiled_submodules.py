"""torch.compile of models whose token grid is read from a submodule."""

from dataclasses import replace

import pytest
import torch
from conftest import make_wan
from freeloc_adapters import wan
from submodule_grids import OUTPUT, hooks_of, patched

from freeloc.adapter import TokenGrid

# Reason: raised inside torch._inductor and torch._dynamo on import or compilation, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def wan_of_two():
    return make_wan(num_layers=2)


ORDERS = ("compile, then patch", "patch, then compile")


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("how", ["whole", "fullgraph", "dynamic", "parts"])
@pytest.mark.parametrize("grid", ["output", "argument"])
def test_compiled(wan_of_two, run, how, order, grid):
    model, adapter = wan_of_two, replace(wan.DIFFUSERS, grid=OUTPUT if grid == "output" else TokenGrid(of="rope"))
    plain = {frames: run(model, frames) for frames in (3, 9)}
    with patched(model, wan.DIFFUSERS):
        expected = {frames: run(model, frames) for frames in (3, 9, 12)}

    def compiled():
        if how == "parts":
            model.compile_repeated_blocks(backend="eager", fullgraph=True)
            return model
        options = {"fullgraph": how != "whole", "dynamic": True if how == "dynamic" else None}
        return torch.compile(model, backend="eager", **options)

    if order == ORDERS[0]:
        called = compiled()
        assert (run(called, 9) - plain[9]).abs().max() <= 2e-5
        patch = patched(model, adapter)
    else:
        patch = patched(model, adapter)
        called = compiled()
    for frames in (9, 3, 12, 9):
        assert (run(called, frames) - expected[frames]).abs().max() <= 2e-5, frames
    assert patch.report().layers[0].calls == {9: 2, 12: 1}
    patch.remove()
    assert (run(called, 9) - plain[9]).abs().max() <= 2e-5
    assert hooks_of(model) == []


@pytest.mark.slow
def test_compiled_with_a_break_after_the_submodule(run):
    model = make_wan(num_layers=2)
    plain = run(model, 9)
    with patched(model, wan.DIFFUSERS):
        expected = {frames: run(model, frames) for frames in (9, 3, 12)}
    model.condition_embedder.forward = torch.compiler.disable(model.condition_embedder.forward)  # after the embedding
    compiled = torch.compile(model, backend="eager")
    assert (run(compiled, 9) - plain).abs().max() <= 2e-5
    for _ in range(2):
        with patched(model):
            for frames, right in expected.items():
                assert (run(compiled, frames) - right).abs().max() <= 2e-5, frames
        assert (run(compiled, 9) - plain).abs().max() <= 2e-5


def test_a_submodule_that_is_compiled_itself(wan_of_two, run):
    with patched(wan_of_two, wan.DIFFUSERS):
        expected = run(wan_of_two, 9)
    wan_of_two.rope = torch.compile(wan_of_two.rope, backend="eager")
    with patched(wan_of_two, replace(wan.DIFFUSERS, grid=TokenGrid(of="rope"))):
        assert (run(wan_of_two, 9) - expected).abs().max() <= 2e-5
    assert hooks_of(wan_of_two) == []
