"""What an inspection sees in models other than diffusers': each file that it writes must pass unedited."""

import sys
from dataclasses import replace

import diffsynth_double
import hunyuan_double
import inspected_double
import nested_double
import opensora_double
import pytest
import torch
import wan_double
from inspected_double import PACKED, example
from marks import slow_unless

import freeloc
from freeloc.adapter import SDPA, TokenGrid
from freeloc.errors import FreelocError
from freeloc.inspection.adapter_file import adapter_file
from freeloc.inspection.model_search import layers_path
from freeloc.testing import run_checks

DOUBLES = {
    example.label: example
    for example in (
        *wan_double.EXAMPLES,
        *opensora_double.EXAMPLES,
        *hunyuan_double.EXAMPLES,
        *diffsynth_double.EXAMPLES,
        nested_double.EXAMPLE,
    )
}
AXES = {"axes": "b f c h w"}


def inspected(example):
    return freeloc.inspect(example.model(), example.inputs(8, 2, 3, 2), run=example.run)


def written(example):
    names = {}
    exec(adapter_file(inspected(example)), names)
    return names["ADAPTER"]


def passing(example):
    """The written adapter, which meets every requirement unedited."""
    adapter = written(example)
    problems = [(result.check, result.problem) for result in run_checks(example, adapter) if result.problem]
    assert [(check, text) for check, text in problems if check not in example.expected_failures] == []
    return adapter


ORIGINALS = ("wan-original", "open-sora-2", "open-sora-2-interleaved", "diffsynth-wan", "hunyuan-video-original")


@pytest.mark.parametrize("label", [slow_unless(label in ORIGINALS[:2], label) for label in ORIGINALS])
def test_doubles_of_original_repositories(label):
    passing(DOUBLES[label])


def kernel(how):
    return passing(example(how, **AXES)).sites[0].kernel


def test_a_function_that_joins_heads_and_channels():
    found = kernel("joined")
    assert (found.function, found.layout, found.output, found.heads) == (
        "inspected_double:joined",
        "b l (h d)",
        "",
        "heads",
    )
    assert found.neutral == {"mask": None, "skip_reshape": False}  # another precision changes nothing
    assert found.arguments == ("q", "k", "v", "heads", "mask", "precision", "skip_reshape", "options")


def test_an_import_that_is_blocked(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attention", None)  # as Python does for a name that must not be imported
    assert written(example("joined", **AXES)).sites[0].kernel.function == "inspected_double:joined"


def test_a_function_with_another_layout_of_its_output():
    found = kernel("skip")
    assert (found.layout, found.output, found.heads) == ("b h l d", "b l (h d)", None)
    assert found.required == {"skip_reshape": True}


def test_a_function_that_gets_a_mask_of_keys():
    found = kernel("masked")
    assert (found.mask, found.mask_axes, found.heads) == ("keys", "b k", "heads")


def test_a_function_called_by_the_module_that_has_it():
    assert kernel("elsewhere").function == "inspected_double_kernels:kernel"


def test_pytorchs_own_function_comes_first_and_the_function_around_it_is_listed():
    subject = example("listed", **AXES)
    adapter = passing(subject)
    assert adapter.sites[0].kernel == SDPA
    assert 4e-3 < adapter.rounding < 2e-2  # it computes in bfloat16
    assert adapter.rope.theta == 10_000
    assert "a kernel that could be named: inspected_double:listed, (b l h d)" in str(inspected(subject))


def test_a_function_that_gets_a_list_and_clears_it(monkeypatch):
    def listed(qkv, k_lens=None):
        q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
        qkv.clear()
        return inspected_double.weighted(q, k, v).transpose(1, 2)

    monkeypatch.setattr(inspected_double, "listed", listed)
    found = kernel("listed")
    assert (found.query, found.key, found.value, found.layout) == ("qkv.0", "qkv.1", "qkv.2", "b l h d")
    assert found.neutral == {"k_lens": None}


def test_a_function_that_an_object_holds_is_named_and_no_file_is_written():
    subject = example("held", **AXES)
    with pytest.raises(FreelocError, match=r"returned attention, but Attention\.held of blocks\.0\.attn, .* cannot be"):
        inspected(subject)


def test_tokens_that_are_regrouped_before_the_kernel_are_said_and_no_file_is_written():
    subject = example("regrouped", **AXES)
    assert inspected(subject).grid is None
    with pytest.raises(FreelocError, match=r"raster order: blocks\.0\.attn regroups those of video first"):
        written(subject)


def test_a_grid_where_the_video_is_padded_to_whole_patches():
    assert passing(example("apart", **AXES)).grid == TokenGrid("frames", "b f c h w", patch=(1, 2, 2), of="embed")


class Unseen(inspected_double.Embed):
    """An embedding whose forward is called as a method, so that no hook sees the padded video."""

    def __call__(self, text, frames):
        return self.forward(text, frames)


def test_padding_that_no_submodule_sees_must_be_added_by_a_person():
    subject = example("apart", **AXES)

    def model():
        made = subject.model()
        made.embed.__class__ = Unseen
        return made

    seen = inspected(replace(subject, model=model))
    assert "a person must add: grid: where the grid is read after the model has padded" in str(seen)
    assert "# A person must add: grid: where the grid" in adapter_file(seen)


def test_the_module_around_the_one_that_calls_the_kernel_gets_the_tables():
    adapter = passing(example("nested", **AXES))
    assert [site.path for site in adapter.sites] == ["blocks.*.attn"]
    assert adapter.rope.tables == "turns"


def test_packed_tokens_with_coordinates_in_a_dataclass():
    assert passing(PACKED).grid == TokenGrid("stream.places", patch=(1, 1, 1), coordinates="stream.places")


def test_packed_tokens_without_numbers_or_coordinates_are_said():
    def inputs(*sizes):
        given = PACKED.inputs(*sizes)
        return given | {"stream": inspected_double.Stream(given["stream"].tokens)}

    with pytest.raises(FreelocError, match=r"which arguments hold the numbers .* of the 48 tokens in stream\.tokens"):
        written(replace(PACKED, inputs=inputs))


def test_a_video_in_a_list_and_text_in_a_mapping():
    adapter = passing(nested_double.EXAMPLE)
    assert (adapter.grid.argument, adapter.sites) == ("x.0", nested_double.ADAPTER.sites)
    assert adapter.rope.tables == "streams.video.turns"


def test_layers_of_blocks_that_run_in_parallel():
    adapter = passing(DOUBLES["wan-original-vace"])
    assert [site.layers for site in adapter.sites if site.layers] == ["vace_layers"]


@pytest.mark.parametrize(
    ("attribute", "held", "found"),
    [
        ("vace_layers_mapping", {0: 0, 2: 1}, "vace_layers_mapping"),
        ("config", {"vace_layers": [0, 2]}, "config.vace_layers"),
        ("vace_sizes", [2, 2], ""),  # two blocks beside one layer
        ("vace_sizes", [2, 4], ""),  # the model has 4 layers
        ("other_layers", [0, 2], ""),
    ],
)
def test_attributes_that_hold_layers(attribute, held, found):
    model = torch.nn.Module()
    setattr(model, attribute, held)
    assert layers_path(model, "vace_blocks.*.attn", blocks=2, layers=4) == found


def test_a_function_that_runs_the_parts_of_a_model():
    adapter = passing(DOUBLES["diffsynth-wan"])
    assert adapter.run_by.function.endswith(":model_fn_wan_video")
    assert adapter.grid.of == "patch_embedding"


def test_modules_that_made_no_call_must_be_named_by_a_person():
    subject = example("apart", **AXES)

    def model():
        made = subject.model()
        made.unused = inspected_double.Attention("apart")
        return made

    text = adapter_file(inspected(replace(subject, model=model)))
    assert "# A person must add: other_attention: unused made no call here. Name those that never attend" in text


def test_a_draft_that_cannot_be_imported_is_not_written():
    seen = inspected(example("apart", **AXES))
    seen.grid = replace(seen.grid, axes="b f h", source=None)
    with pytest.raises(
        FreelocError, match=r"a person must add what follows from .*TokenGrid\.axes: expected each axis"
    ):
        adapter_file(seen)


def test_what_is_replaced_while_it_is_watched_is_restored():
    before = {name: getattr(inspected_double, name) for name in ("joined", "apart", "listed", "masked", "weighted")}
    inspected(example("joined", **AXES))
    assert {name: getattr(inspected_double, name) for name in before} == before
    assert sys.getprofile() is None
