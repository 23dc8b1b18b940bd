"""The initial noise that a profile names: its file, its version, what is refused, what the commands print."""

import json

import pytest
from conftest import make_profile

from freeloc.cli import main
from freeloc.errors import FreelocError, ProfileError
from freeloc.profile.diff import differences
from freeloc.profile.files import load_profile, validated, with_choice
from freeloc.untrusted import check_version


def with_noise(**changes):
    return make_profile(schema_version=3, noise="freenoise", **changes)


def written(profile, path):
    profile.save(path)
    return json.loads(path.read_text())


def test_a_profile_with_noise_is_a_file_of_version_3(tmp_path):
    path = tmp_path / "mine.json"
    content = written(with_noise(), path)
    assert (content["schema_version"], content["noise"]) == (3, "freenoise")
    assert load_profile(path) == with_noise()


@pytest.mark.parametrize(
    ("changes", "version"), [({}, 1), ({"layers": {"riflex": [0], "vrpr": [1, 2, 3]}, "schema_version": 2}, 2)]
)
def test_other_profiles_are_written_as_before(tmp_path, changes, version):
    content = written(make_profile(**changes), tmp_path / "mine.json")
    assert content["schema_version"] == version
    assert "noise" not in content


def test_a_file_of_version_3_without_noise_is_written_in_the_oldest_version(tmp_path):
    path = tmp_path / "mine.json"
    assert written(make_profile(schema_version=3), path)["schema_version"] == 1


def test_an_older_freeloc_refuses_the_file(tmp_path):
    content = written(with_noise(), tmp_path / "mine.json")
    with pytest.raises(FreelocError, match=r"schema_version 1 or 2, found 3\. A newer file needs a newer freeloc"):
        check_version(content["schema_version"], 2, "mine.json")  # as freeloc with version 2 does


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_version_has_no_noise(tmp_path, version):
    content = written(with_noise(), tmp_path / "mine.json") | {"schema_version": version}
    with pytest.raises(ProfileError, match=f'noise: .*noise needs "schema_version": 3, found {version}, found \'freen'):
        validated(content, "mine.json")


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("vrpr", r"  noise: expected the name of a method with initial noise of its own \(freenoise\), found 'vrpr'"),
        ("freenoize", "  noise: expected the name of a method with .*: no method is named 'freenoize'"),
        ("a\nb", "  noise: .*expected a name on one line"),
        (5, "  noise: Input should be a valid string, found 5"),
    ],
)
def test_wrong_noise(tmp_path, noise, message):
    content = written(with_noise(), tmp_path / "mine.json") | {"noise": noise}
    with pytest.raises(ProfileError, match=message):
        validated(content, "mine.json")


def test_another_choice_of_layers_keeps_the_noise():
    changed = with_choice(with_noise(), {"riflex": [0, 1, 2, 3]})
    assert (changed.schema_version, changed.noise) == (3, "freenoise")
    without = with_choice(with_noise(), {"vrpr": [0, 1, 2, 3]}, noise=None)
    assert (without.schema_version, without.noise) == (1, None)
    assert with_choice(make_profile(), {"vrpr": [0, 1, 2, 3]}, noise="freenoise").schema_version == 3


def test_what_the_commands_print(tmp_path, capsys):
    plain, noisy = tmp_path / "plain.json", tmp_path / "noisy.json"
    make_profile().save(plain)
    with_noise().save(noisy)
    assert "noise: nothing -> freenoise" in differences(make_profile(), with_noise())
    assert main(["profiles", "diff", str(plain), str(noisy)]) == 1
    assert "noise: nothing -> freenoise" in capsys.readouterr().out
    for path, printed in ((plain, False), (noisy, True)):
        main(["profiles", "show", str(path)])
        assert ("noise      initial noise of freenoise\n" in capsys.readouterr().out) is printed
