"""What an adapter receives from a call: its arguments by name, however they were passed."""

from dataclasses import replace

import pytest
import torch
from freeloc_toy.adapter import TOY
from freeloc_toy.examples import inputs
from freeloc_toy.model import ToyDiT

import freeloc
from freeloc.adapter import References, TokenGrid
from freeloc.adapter.reader import GridReader, of_coordinates, references_of


class Rated(ToyDiT):
    """Has defaults, and a first parameter that is not called self."""

    def forward(this, video, text, text_lengths, fps=8, *, packed=False):  # noqa: N805
        return super().forward(video, text, text_lengths)


def patched(model, grid=TOY.grid, step=None):
    classes, rope = (f"{__name__}.Rated",), replace(TOY.rope, step=step)
    adapter = replace(TOY, classes=classes, grid=grid, rope=rope)
    return freeloc.patch(model, freeloc.default_profile(model, "vrpr", 4, adapter=adapter), adapter=adapter)


def test_a_step_gets_the_arguments_by_name_and_the_defaults_of_those_left_out():
    model, given, rates = Rated(), inputs(8, 2, 3, 1), []
    with patched(model, step=lambda model, given: rates.append(given["fps"]) or 8 / given["fps"]):
        model(**given)
        model(*given.values())
        model(*given.values(), 4)
        model(**given, fps=4)
    assert rates == [8, 8, 4, 4]


def test_an_argument_that_is_refused_may_stay_at_its_default():
    model, given = Rated(), inputs(8, 2, 3, 1)
    grid = TokenGrid("video", axes="b f c h w", patch=(1, 2, 2), refused={"packed": "no frames"})
    with patched(model, grid) as patch:
        model(**given)
        model(**given, packed=False)
        with pytest.raises(freeloc.errors.LayoutError, match="cannot be corrected when called with packed: no frames"):
            model(**given, packed=True)
    assert patch.report().corrected_calls == 4


def grid_of(grid, **given):
    model = ToyDiT()
    return GridReader(replace(TOY, grid=grid), model, model).of_model(model, given).grid


def test_each_axis_is_divided_by_its_own_side_of_a_patch_and_the_last_one_along_frames_may_be_incomplete():
    grid = TokenGrid("video", axes="b f c h w", patch=(2, 2, 3))
    assert grid_of(grid, video=torch.zeros(1, 5, 7, 8, 9)) == (3, 4, 3)


def test_the_largest_coordinate_of_a_table_is_one_less_than_the_number():
    grid = TokenGrid("places", axes="sample token (f h w)", patch=(1, 1, 1))
    places = torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(3))
    assert grid_of(grid, places=places[None]) == (4, 2, 3)


def test_references_are_counted_on_their_side_of_the_video():
    kinds = (
        References("first", 1),
        References("last", lambda given: given["images"]),
        References("last", 4, apart=True),
    )
    assert references_of(kinds, ToyDiT(), {"images": 2}) == (1, 6, 4)


def test_coordinates_that_differ_between_samples_are_refused():
    time, row, column = torch.meshgrid(torch.arange(4.0), torch.arange(2.0), torch.arange(3.0), indexing="ij")
    one = torch.stack([time, row, column]).flatten(1)
    other = torch.stack([time, row + 1, column]).flatten(1)
    assert not of_coordinates(torch.stack([one, one]), "coordinates").refused
    assert of_coordinates(torch.stack([one, other]), "coordinates").refused
