"""Profiles whose layers and heads have combined parts: written, read, patched, listed and drawn."""

import json

import pytest
import torch
from conftest import make_profile
from oracle import use_oracle_of

import freeloc
from freeloc import frame_plan
from freeloc.cli import main
from freeloc.errors import ProfileError
from freeloc.pictures.profiles import policy_colours
from freeloc.plans.combined import combined_plan
from freeloc.plans.combined_settings import CombinedSettings, Slope, SmoothPositions, Temperature, Window
from freeloc.plans.frame_plan import DENSE
from freeloc.profile.files import load_profile

DEFINED = {
    "near": {
        "method": "combined",
        "settings": {"attention": {"kind": "window", "frames": 5, "sink_frames": 3}, "balance": 0.5},
    },
    "soft": {
        "method": "combined",
        "settings": {
            "positions": {"kind": "smooth", "near_frames": 1, "curve": "linear"},
            "slope": {"per_frame": 0.2, "near_frames": 2},
            "temperature": {"strength": 0.5, "factor": 1.1},
        },
    },
    "sharp": {"method": "balanced", "settings": {"factor": 1.2}},
    "second step": {"method": "lvsa", "settings": {"reach_frames": 1, "interval": 3, "step": 2}},
}
NEAR = CombinedSettings(attention=Window(frames=5, sink_frames=3), balance=0.5)
SOFT = CombinedSettings(
    positions=SmoothPositions(near_frames=1, curve="linear"),
    slope=Slope(per_frame=0.2, near_frames=2),
    temperature=Temperature(strength=0.5, factor=1.1),
)


@pytest.fixture
def path(tmp_path):
    content = make_profile().model_dump(exclude_none=True) | {
        "schema_version": 2,
        "policies": DEFINED,
        "layers": {"near": [0], "soft": [1], "sharp": [2], "second step": [3]},
        "heads": {"2": {"near": [0]}},
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    return file


def test_it_is_read_and_written(path, tmp_path):
    profile = load_profile(path)
    assert frame_plan(profile, 0, 9).same_as(combined_plan(9, 4, NEAR))
    assert frame_plan(profile, 1, 9).same_as(combined_plan(9, 4, SOFT))
    assert frame_plan(profile, 2, 9, head=0).same_as(combined_plan(9, 4, NEAR))
    assert frame_plan(profile, 2, 9, head=1).logit_scale == 1.2
    profile.save(tmp_path / "again.json")
    again = load_profile(tmp_path / "again.json")
    assert again == profile
    for layer in range(4):
        for head in range(2):
            assert frame_plan(again, layer, 9, head).same_as(frame_plan(profile, layer, 9, head))


def test_a_real_wan_with_layers_and_heads_of_it_equals_the_oracle(path, small_wan, run):
    profile = load_profile(path)
    alike = profile.model_copy(update={"heads": {}})
    oracle = use_oracle_of(small_wan, lambda layer, frames: frame_plan(alike, layer, frames), 3, 5)
    for frames in (4, 9, 14):
        expected, plain = run(oracle, frames), run(small_wan, frames)
        with freeloc.patch(small_wan, alike):
            found = run(small_wan, frames)
        assert (found - expected).abs().max() <= 2e-5
        assert ((found - plain).abs().max() > 1e-3) == (frames > 4)
    with freeloc.patch(small_wan, profile):
        by_head = run(small_wan, 9)
    with freeloc.patch(small_wan, profile, backend="reference"):
        expected = run(small_wan, 9)
    torch.testing.assert_close(by_head, expected, atol=2e-5, rtol=2e-5)


def test_references_have_no_bias_and_are_seen_by_all(path):
    profile = load_profile(path)
    plan = frame_plan(profile, 0, 11, reference_frames=(1, 1))
    inside = combined_plan(9, 4, NEAR)
    assert torch.equal(plan.bias[1:10, 1:10], inside.bias)
    assert torch.equal(plan.visibility[1:10, 1:10], inside.visibility)
    for index in (0, 10):
        assert not plan.bias[index].any()
        assert not plan.bias[:, index].any()
        assert (plan.visibility[index] == DENSE).all()
        assert (plan.visibility[:, index] == DENSE).all()


def test_show_prints_the_parts_in_a_few_words(path, capsys):
    assert main(["profiles", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    for line in (
        "policy     near: combined: vrpr, window 5 + first 3, balance 0.5\n",
        "policy     soft: combined: linear from 1, slope 0.2, x 1.1, log n x 0.5\n",
        "policy     sharp: balanced: vrpr, balance 0.25, x 1.2\n",
        "policy     second step: lvsa: window 3 + first 1, step 2\n",
    ):
        assert line in shown


def test_pictures_name_the_policies_with_colours_of_their_own(path):
    colours = policy_colours(load_profile(path))
    assert list(colours) == ["near", "soft", "sharp", "second step"]
    assert len(set(colours.values())) == 4


def test_a_wrong_part_is_refused_with_its_place(path):
    content = json.loads(path.read_text())
    content["policies"]["near"]["settings"]["attention"]["frames"] = 0
    path.write_text(json.dumps(content))
    place = r"policies\.near\.settings\.attention\.window\.frames: Input should be greater than or equal to 1, found 0"
    with pytest.raises(ProfileError, match=place):
        load_profile(path)
