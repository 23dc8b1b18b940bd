"""Items and attributes of arguments, wherever an adapter names an argument."""

from dataclasses import dataclass, replace

import pytest
import torch
from freeloc_adapters.examples import ltx as ltx_examples
from freeloc_adapters.ltx import LTX
from nested_double import ADAPTER, EXAMPLE, inputs

import freeloc
from freeloc.adapter import TokenGrid
from freeloc.adapter.paths import argument_at, with_argument
from freeloc.adapter.reader import times_apart
from freeloc.errors import LayoutError
from freeloc.testing import run_checks


@dataclass(frozen=True)
class Modality:
    positions: object
    latent: object = None


GIVEN = {"x": [1, (2, {"key": 3})], "video": Modality("seconds"), "none": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x.0", 1),
        ("x.1.0", 2),
        ("x.1.1.key", 3),
        ("video.positions", "seconds"),
        ("none.at", None),
        ("left_out.0", None),
    ],
)
def test_what_is_read(name, value):
    assert argument_at(GIVEN, name) == value


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x.2", "a list of 2 items as x"),
        ("x.1.1.other", r"a dict with \['key'\] as x\.1\.1"),
        ("x.first", "a list of 2 items as x"),
        ("video.position", "a Modality as video"),
        ("x.0.0", r"a int as x\.0"),
    ],
)
def test_what_is_absent_is_an_error(name, found):
    with pytest.raises(LayoutError, match=rf"the adapter's '{name}' among the arguments of the call, found {found}: "):
        argument_at(GIVEN, name)


def test_only_items_and_keys_may_be_absent_where_that_is_allowed():
    assert argument_at(GIVEN, "x.2", is_optional=True) is None
    assert argument_at(GIVEN, "x.1.1.other", is_optional=True) is None
    with pytest.raises(LayoutError, match="found a Modality as video"):
        argument_at(GIVEN, "video.position", is_optional=True)


@pytest.mark.parametrize("name", ["x.0", "x.1.0", "x.1.1.key", "video.positions", "x"])
def test_a_replaced_value_is_read_again_and_the_given_one_stays(name):
    before = repr(GIVEN)
    assert argument_at(with_argument(GIVEN, name, "other"), name) == "other"
    assert repr(GIVEN) == before


def test_the_conformance_suite_passes():
    assert [(result.check, result.problem) for result in run_checks(EXAMPLE, ADAPTER) if not result.met] == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"grid": replace(ADAPTER.grid, argument="x.1")}, "check_every_site_calls_its_kernel"),
        ({"rope": replace(ADAPTER.rope, tables="streams.audio.turns")}, "check_every_site_calls_its_kernel"),
        ({"sites": (replace(ADAPTER.sites[0], hidden_states="streams.video"),)}, "check_every_call_is_as_described"),
        (
            {"sites": (replace(ADAPTER.sites[0], text_tokens="transformer.prompt.y"),)},
            "check_every_site_calls_its_kernel",
        ),
    ],
)
def test_the_conformance_suite_fails_with_another_item(change, check):
    assert check in {result.check for result in run_checks(EXAMPLE, replace(ADAPTER, **change)) if result.problem}


def patched(model):
    return freeloc.patch(model, freeloc.default_profile(model, "vrpr+tsa", 4, adapter=ADAPTER), adapter=ADAPTER)


# Reason: raised inside torch._dynamo on import or compilation, not by this project.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_model_that_is_compiled_as_a_whole_computes_the_same_at_all_lengths():
    model, given = EXAMPLE.model(), {frames: inputs(frames, 2, 3, 2) for frames in (3, 9, 12)}
    with torch.no_grad(), patched(model):
        expected = {frames: model(**each) for frames, each in given.items()}
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        for frames, each in given.items():
            assert (compiled(**each) - expected[frames]).abs().max() <= 2e-5
    assert (model(**given[9]) - expected[9]).abs().max() > 1e-3


def test_refused_items_are_refused_beyond_the_trained_length_only():
    model = EXAMPLE.model()
    with torch.no_grad(), patched(model):
        model(**inputs(9, 2, 3, 1))
        for change, why in (
            ({"x": [*inputs(9, 2, 3, 1)["x"], torch.zeros(1)]}, r"called with x\.2: a third stream"),
            ({"options": {"guide": 1}}, r"called with options\.guide: why"),
        ):
            with pytest.raises(LayoutError, match=why):
                model(**inputs(9, 2, 3, 1) | change)
            model(**inputs(3, 2, 3, 1) | change | {"x": inputs(3, 2, 3, 1)["x"]})


class Modal(type(ltx_examples.ltx())):
    """LTX that gets the seconds and pixels of its tokens in a dataclass."""

    def forward(self, video, **others):
        return super().forward(hidden_states=video.latent, video_coords=video.positions, **others)


def test_coordinates_in_a_dataclass_stand_for_the_grid():
    plain, model = ltx_examples.ltx(), ltx_examples.ltx()
    model.__class__ = Modal
    adapter = replace(
        LTX,
        classes=(f"{__name__}.Modal",),
        grid=TokenGrid("video.positions", patch=(1, 1, 1), coordinates="video.positions"),
        rope=replace(LTX.rope, step=lambda model, given: times_apart(given["video"].positions) / 20),
    )
    given = ltx_examples.inputs(9, 2, 3, 1) | {"rope_interpolation_scale": None}
    latent, *_ = (given.pop(name) for name in ("hidden_states", "num_frames", "height", "width"))
    axes = torch.arange(9) * 8 / 25, torch.arange(2) * 32.0, torch.arange(3) * 32.0
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)[None]
    profile = freeloc.default_profile(plain, "vrpr+tsa", 4)
    with torch.no_grad():
        with freeloc.patch(plain, profile):
            expected = plain(latent, video_coords=coordinates, **given)[0]
        with freeloc.patch(model, profile, adapter=adapter):
            assert torch.equal(model(video=Modality(coordinates, latent), **given)[0], expected)
            with pytest.raises(LayoutError, match=r"video\.positions is not a grid of latent frames"):
                model(video=Modality(coordinates.flip(2), latent), **given)
            with pytest.raises(LayoutError, match=r"Modal was called without video\.positions"):
                model(video=Modality(None, latent), num_frames=9, height=2, width=3, **given)
