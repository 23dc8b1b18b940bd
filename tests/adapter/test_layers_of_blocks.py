"""The layers with which blocks run in parallel: a sequence, a mapping, or a function."""

from dataclasses import replace

import pytest
import torch
import wan_double
from conftest import make_profile
from freeloc_adapters import wan

import freeloc
from freeloc.adapter.layers import layer_numbers
from freeloc.errors import AdapterError
from freeloc.testing import run_checks

EXAMPLE = next(example for example in wan_double.EXAMPLES if example.adapter == "wan-original-vace")


def adapter(layers):
    main, parallel = wan.ORIGINAL_VACE.sites
    return replace(wan.ORIGINAL_VACE, sites=(main, replace(parallel, layers=layers)))


def model(held=None):
    made = EXAMPLE.model()
    made.held = held
    return made


FORMS = {
    "sequence": ([0, 2], "held"),
    "tuple": ((0, 2), "held"),
    "mapping": ({0: 0, 2: 1}, "held"),
    "mapping in another order": ({2: 1, 0: 0}, "held"),
    "function": (None, lambda model: model.vace_layers),
    "function that returns a mapping": (None, lambda model: {layer: n for n, layer in enumerate(model.vace_layers)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_blocks_the_same_layers(form):
    held, layers = FORMS[form]
    places = [(layer, path) for _, layer, path, _ in adapter(layers).places(model(held))]
    assert places == [(layer, path) for _, layer, path, _ in wan.ORIGINAL_VACE.places(model())]
    assert [layer for layer, path in places if path.startswith("vace_blocks")] == [0, 2]


def test_a_patch_by_a_mapping_computes_what_one_by_a_sequence_does():
    inputs, profile, found = EXAMPLE.inputs(9, 2, 3, 2), make_profile(), []
    for layers in ("vace_layers", "held"):
        made = model({2: 1, 0: 0})
        with freeloc.patch(made, profile, adapter=adapter(layers)), torch.no_grad():
            found.append(torch.stack(made(**inputs)))
    assert torch.equal(*found)


def test_the_conformance_suite_passes_with_a_mapping():
    example = replace(EXAMPLE, model=lambda: model({0: 0, 2: 1}))
    assert [result for result in run_checks(example, adapter("held")) if not result.passed] == []


@pytest.mark.parametrize(
    "held", [[0], 2, "02", {0: 0}, {0: 0, 2: 0}, {0: 1, 2: 2}, {0: 0, 2: None}, [0, None], [0, -1], None]
)
def test_what_gives_no_layer_to_a_block_is_an_error(held):
    with pytest.raises(
        AdapterError, match=r"layers 'held': expected a layer for each of 2 blocks .*, found .*: name an"
    ):
        list(adapter("held").places(model(held)))
    with pytest.raises(AdapterError, match=r"layers \(a function\): expected a layer for each of 2 blocks"):
        list(adapter(lambda model: model.held).places(model(held)))


def test_a_layer_that_the_model_has_not_is_an_error():
    with pytest.raises(AdapterError, match=r"layers of VaceWanModel, 0 to 3, found 4 for vace_blocks\.1\.self_attn"):
        list(adapter("held").places(model([0, 4])))


def test_more_layers_than_blocks_and_blocks_of_other_networks_are_left_out():
    assert layer_numbers([0, 2, 4], 2, "") == [0, 2]
    assert layer_numbers({0: 0, 2: 1, 4: 2}, 2, "") == [0, 2]
