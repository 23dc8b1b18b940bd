"""Which methods are valid."""

import colorsys
import re

import pytest
from pydantic import BaseModel

from freeloc import FramePlan, FreelocError
from freeloc.plans.baselines import BASELINES
from freeloc.plans.combined import BALANCED, COMBINED
from freeloc.plans.method import Method, colour_of
from freeloc.plans.policies import POLICIES, freeloc_methods
from freeloc.plans.windows import LVSA
from freeloc.profile.schema import POLICIES as NAMES


class Empty(BaseModel):
    pass


def identity(profile, layer, frames):
    return FramePlan.identity(frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"settings": {"factor": 1}},
            "expected settings as a class derived from pydantic.BaseModel, found {'factor': 1}",
        ),
        ({"settings": int}, "expected settings as a class derived from pydantic.BaseModel, found <class 'int'>"),
        ({"settings": Empty()}, "expected settings as a class derived from pydantic.BaseModel, found Empty()"),
        ({"defaults": lambda profile: Empty()}, "expected settings beside defaults, found None"),
        ({"label": str}, "expected settings beside label, found None"),
        ({"colour": "red"}, "expected a colour like '#30408f', with lower-case digits, found 'red'"),
        ({"colour": "#ABCDEF"}, "expected a colour like '#30408f', with lower-case digits, found '#ABCDEF'"),
    ],
)
def test_invalid_methods_are_refused(arguments, message):
    with pytest.raises(FreelocError, match=f"^{re.escape(f'method {chr(39)}mine{chr(39)}: {message}')}$"):
        Method("mine", identity, **arguments)


def test_every_method_has_a_colour_of_its_own():
    colours = [method.colour for method in freeloc_methods()]
    assert len(set(colours)) == len(colours)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    assert Method("mine", identity).colour == colour_of("mine") != colour_of("yours")
    assert Method("mine", identity, colour="#123456").colour == "#123456"


@pytest.mark.parametrize("name", ["a", "\ud800", "", "long " * 999])
def test_a_colour_of_a_name_is_neither_white_nor_black_nor_grey(name):
    rgb = [int(colour_of(name)[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    _, light, strong = colorsys.rgb_to_hls(*rgb)
    assert 0.35 < light < 0.75
    assert strong > 0.35


def test_freelocs_own_methods_are_the_policies_of_version_1():
    assert [method.name for method in POLICIES] == list(NAMES)
    assert freeloc_methods() == [*POLICIES, BALANCED, COMBINED, *BASELINES, LVSA]
