"""Untrusted profiles: any file is either read correctly or refused with one clear message."""

import contextlib
import itertools
import json
import os
from pathlib import Path

import pytest
from conftest import make_profile
from hostile import LITERALS, LONGEST, Fields, Literal, clear, damaged, mutated, parts_of, written
from hypothesis import given, settings
from pydantic import BaseModel, field_validator

import freeloc
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Method
from freeloc.profile.files import with_choice
from freeloc.profile.planning import layer_plans
from freeloc.profile.schema import PolicyPart, version_for
from freeloc.registry import registry

QUICK = settings(max_examples=150, deadline=None)
FUZZ = settings(max_examples=5000, deadline=None)
TIERS = {"near_frames": 2, "mid_frames": 3, "mid_group": 2, "far_group": 8}
FULL = make_profile(
    heads={"1": {"none": [0]}},
    vrpr={"flooring": "position", "lengths": {"9": TIERS}},
    tsa={"dense_frames": 1, "striped_frames": 3, "stripe": 0.25},
    evidence={"sha256": "0" * 64, "rule": "a rule"},
)


def read_or_refused(path, data):
    """A profile that equals the file, survives saving and makes plans; otherwise a clear refusal."""
    path.write_bytes(data)
    try:
        profile = freeloc.load_profile(path)
    except freeloc.errors.ProfileError as error:
        return clear(error, path)
    assert profile.model_dump(exclude_unset=True) == json.loads(data)
    again = path.with_name("again.json")
    profile.save(again)
    version = version_for(profile.policies, profile.layers, profile.heads)
    assert freeloc.load_profile(again) == profile.model_copy(update={"schema_version": version})
    lengths = [int(length) for length in profile.vrpr.lengths if len(length) < 3]
    for frames in {1, 2, 9, min(profile.model.trained_latent_frames + 1, 50), *lengths[:2]}:
        for layer in {0, 1, profile.model.layers - 1}:
            with contextlib.suppress(freeloc.FreelocError):
                layer_plans(profile, layer, frames)
    return None


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "bad.json"


GOOD = json.dumps(FULL.model_dump(exclude_none=True, exclude={"policies"}))
NEWER = with_choice(
    FULL.model_copy(
        update={
            "policies": {
                "wide": PolicyPart(method="tsa", settings={"dense_frames": 2, "stripe": 0.5}),
                "both": PolicyPart(method="vrpr+tsa", settings={"vrpr": {"flooring": "position", "lengths": {}}}),
            }
        }
    ),
    {"wide": [0], "riflex": [1, 2], "vrpr": [3]},
    {"1": {"both": [0]}},
)
GOOD_2 = json.dumps(NEWER.model_dump(exclude_none=True))
GOODS = pytest.mark.parametrize(
    "good", [pytest.param(GOOD, id="version 1", marks=pytest.mark.slow), pytest.param(GOOD_2, id="version 2")]
)


def test_the_profiles_before_mutation_are_valid(file):
    for text, profile in ((GOOD, FULL), (GOOD_2, NEWER)):
        file.write_text(text)
        assert freeloc.load_profile(file) == profile


@QUICK
@given(text=mutated(GOOD) | mutated(GOOD_2))
def test_any_change_of_a_profile_is_read_or_refused(text, file):
    read_or_refused(file, text.encode())


@QUICK
@given(data=damaged(GOOD.encode()) | damaged(GOOD_2.encode()))
def test_any_bytes_are_read_or_refused(data, file):
    read_or_refused(file, data)


@pytest.mark.slow
@FUZZ
@given(data=(mutated(GOOD) | mutated(GOOD_2)).map(str.encode) | damaged(GOOD.encode()) | damaged(GOOD_2.encode()))
def test_many_changes_of_a_profile_are_read_or_refused(data, file):
    read_or_refused(file, data)


@GOODS
@pytest.mark.parametrize("literal", LITERALS, ids=lambda literal: literal[:12])
def test_every_value_in_every_place_of_a_profile_is_read_or_refused(literal, good, file):
    for number in itertools.count():
        content = json.loads(good, object_pairs_hook=Fields)
        places = [(part, place) for part in parts_of(content) for place in range(len(part))]
        if number == len(places):
            break
        part, place = places[number]
        part[place] = (part[place][0], Literal(literal)) if isinstance(part, Fields) else Literal(literal)
        read_or_refused(file, written(content).encode())


@pytest.mark.parametrize(
    "name",
    [
        *(
            None,
            3,
            b"x",
            [],
            {},
            "",
            ".",
            "..",
            "../wan2.1",
            "../../etc/nowhere",
            "wan2.1/../wan2.1",
            "a\x00b",
            "\x1b[31m",
        ),
        *("n" * 5000, "n" * 5000 + ".json", "a\x00.json", "\ud800", "\ud800.json", Path("nowhere.json"), float("nan")),
    ],
    ids=lambda name: repr(name)[:20],
)
def test_an_invalid_profile_name_is_refused_with_what_was_expected(name):
    with pytest.raises(freeloc.errors.ProfileError, match=r"\.json|File name too long") as caught:
        freeloc.load_profile(name)
    assert len(str(caught.value)) < LONGEST
    assert str(caught.value).isprintable()


def test_a_file_that_is_not_regular_is_refused_without_blocking(tmp_path):
    pipe, loop, device = tmp_path / "pipe.json", tmp_path / "loop.json", tmp_path / "device.json"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    message = {pipe: "found a folder or a device", device: "found a folder or a device", loop: "Too many levels"}
    for path, words in message.items():
        with pytest.raises(freeloc.errors.ProfileError, match=f"cannot read the profile .*{path.name}: .*{words}"):
            freeloc.load_profile(path)


def test_a_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "mine.json"
    FULL.save(path)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(freeloc.errors.ProfileError, match=r"cannot read the profile .*mine\.json: Permission denied"):
        freeloc.load_profile(path)


def test_of_thousands_of_wrong_entries_ten_are_listed(file):
    content = FULL.model_dump() | {f"field {number}": "long " * 50 for number in range(3000)}
    file.write_text(json.dumps(content))
    with pytest.raises(freeloc.errors.ProfileError) as caught:
        freeloc.load_profile(file)
    lines = str(caught.value).split("\n")
    assert lines[1].startswith("  field 0: Extra inputs are not permitted, found 'long long ")
    assert (len(lines), lines[-1]) == (12, "  and 2990 more")
    clear(caught.value, file)


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_message_about_many_long_policy_names_stays_readable(count, file):
    names = [f"{number:03}" + "n" * 97 for number in range(count)]
    content = json.loads(GOOD_2) | {"layers": {"x" * 100: [0, 1, 2, 3]}}
    content["policies"] = {name: {"method": "m" * 100} for name in names}
    content["heads"] = {"0": {name: [number] for number, name in enumerate(names)}}
    content["model"]["heads"] = 100
    file.write_text(json.dumps(content))
    with pytest.raises(freeloc.errors.ProfileError, match=r"policies\.\S+n\.method: no method is named 'mmm") as caught:
        freeloc.load_profile(file)
    clear(caught.value, file)


def test_settings_that_a_plugin_cannot_read_are_refused(file, monkeypatch):
    class Careless(BaseModel):
        share: float

        @field_validator("share")
        @classmethod
        def _inverse(cls, share: float) -> float:
            return 1 / share

    method = Method("careless", lambda profile, layer, frames, own: FramePlan.identity(frames), settings=Careless)
    monkeypatch.setitem(registry().methods.owners, "careless", [("a package", method)])
    content = json.loads(GOOD_2) | {"heads": {}, "layers": {"p": [0, 1, 2, 3]}}
    file.write_text(json.dumps(content | {"policies": {"p": {"method": "careless", "settings": {"share": 0}}}}))
    words = "policies.p.settings: the method 'careless' cannot read them: ZeroDivisionError: float division by zero"
    with pytest.raises(freeloc.errors.ProfileError, match=words) as caught:
        freeloc.load_profile(file)
    clear(caught.value, file)


def test_a_large_file_is_refused_and_none_is_written(tmp_path):
    path = tmp_path / "large.json"
    large = FULL.model_copy(update={"provenance": FULL.provenance.model_copy(update={"notes": "ä" * 600_000})})
    with pytest.raises(
        freeloc.errors.ProfileError, match=r"cannot write the profile .*: expected at most 1000000 bytes, found"
    ):
        large.save(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text(json.dumps(large.model_dump()))
    with pytest.raises(
        freeloc.errors.ProfileError, match=r"expected a file of at most 1000000 bytes, found 360\d+ bytes"
    ):
        freeloc.load_profile(path)


@pytest.mark.parametrize("content", [b"", b"other", bytes(3_000_000)], ids=["empty", "short", "long"])
def test_other_measurements_beside_a_profile_are_refused(content, tmp_path):
    path = tmp_path / "mine.json"
    FULL.save(path)
    assert freeloc.load_profile(path) == FULL
    path.with_suffix(".safetensors").write_bytes(content)
    with pytest.raises(
        freeloc.errors.ProfileError, match=r"mine\.safetensors does not hold .* expected sha256 000000000000\.\.\., fo"
    ):
        freeloc.load_profile(path)


def test_a_name_too_long_for_measurements_beside_it_is_no_error(tmp_path):
    path = tmp_path / ("n" * 249 + ".json")
    path.write_text(GOOD)
    assert freeloc.load_profile(path) == FULL


def test_a_failing_replacement_leaves_the_old_file_complete(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(5, "Input/output error")

    path = tmp_path / "mine.json"
    FULL.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(freeloc.errors.ProfileError, match=r"cannot write the profile .*mine\.json: Input/output error"):
        make_profile().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "n" * 300, "a\x00.json", "note.txt/mine.json"], ids=lambda name: name[:10])
def test_names_that_no_file_can_have_are_refused_on_writing(name, tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(freeloc.errors.ProfileError, match="cannot write the profile"):
        FULL.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]
