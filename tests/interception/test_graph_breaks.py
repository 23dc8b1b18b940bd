"""torch.compile where hooks of others break its graph inside attention."""

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs

import freeloc
from freeloc.errors import PatchError

# Reason: raised inside torch._dynamo on compilation, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

PROFILE = make_profile({"vrpr+tsa": [0]})


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def expected():
    model = make_wan(num_layers=1)
    with freeloc.patch(model, PROFILE), torch.no_grad():
        return model(**wan_inputs(9))[0]


@pytest.mark.slow
@pytest.mark.parametrize("by_blocks", [False, True])
@pytest.mark.parametrize("part", ["to_q", "to_out.0", ""])
def test_breaks_around_every_part(expected, run, part, by_blocks):
    model = make_wan(num_layers=1)
    for block in model.blocks:
        block.attn1.get_submodule(part).register_forward_pre_hook(lambda *call: torch._dynamo.graph_break())
    for module in model.blocks if by_blocks else [model]:
        module.compile(backend="eager")
    with freeloc.patch(model, PROFILE) as patch:
        for _ in range(3):
            assert torch.equal(run(model, 9), expected)
    assert patch.report().layers[0].calls == {9: 3}


@pytest.mark.parametrize("order", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_replaced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_attention_that_is_compiled_alone(expected, run, is_replaced, order):
    """The hooks are outside of its compiled code, or it is compiled with them."""
    model = make_wan(num_layers=1)

    def compile_attention():
        block = model.blocks[0]
        if is_replaced:
            block.attn1 = torch.compile(block.attn1, backend="eager")
        else:
            block.attn1.forward = torch.compile(block.attn1.forward, backend="eager")

    if order == "before":
        compile_attention()
    with freeloc.patch(model, PROFILE) as patch:
        if order == "after":
            compile_attention()
        for _ in range(2):
            assert torch.equal(run(model, 9), expected)
    assert patch.report().layers[0].calls == {9: 2}


def test_a_jit_trace_is_refused():
    model, inputs = make_wan(num_layers=1), wan_inputs(9)

    def forward(video):
        return model(**inputs | {"hidden_states": video})[0]

    with freeloc.patch(model, PROFILE), pytest.raises(PatchError, match="cannot be exported"):
        torch.jit.trace(forward, (inputs["hidden_states"],), check_trace=False)


@pytest.mark.slow
@pytest.mark.parametrize("error", [pytest.param(ValueError, marks=pytest.mark.slow), KeyboardInterrupt])
@pytest.mark.parametrize("by_blocks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_error_between_two_graphs_leaves_nothing(expected, run, by_blocks, error):
    model, other = make_wan(num_layers=1), make_wan(num_layers=1)
    plain = run(other, 9)
    is_on = True

    def hook(*call):
        torch._dynamo.graph_break()
        if is_on:
            raise error

    model.blocks[0].attn1.to_q.register_forward_pre_hook(hook)
    for module in model.blocks if by_blocks else [model]:
        module.compile(backend="eager")
    with freeloc.patch(model, PROFILE):
        with pytest.raises(error):
            run(model, 9)
        is_on = False
        assert torch.equal(run(other, 9), plain)
        assert torch.equal(run(model, 9), expected)
        is_on = True
        with pytest.raises(error):
            run(model, 9)
    assert torch.overrides._get_current_function_mode_stack() == []
    is_on = False
    assert torch.equal(run(model, 9), plain)
