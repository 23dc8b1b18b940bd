"""freeloc profiles show | validate | diff."""

import json
from pathlib import Path

import pytest
import torch

import freeloc
from freeloc.cli import main
from freeloc.errors import ProbeError
from freeloc.probing import ProbeFacts, Rule, Sensitivity, Table
from freeloc.profile.diff import differences
from freeloc.profile.files import measurements_path, profile_path, with_choice
from freeloc.profile.schema import PolicyPart, Profile
from freeloc.tiny.settings import LAYER_CHOICE, with_layers

TINY = freeloc.load_profile(LAYER_CHOICE)
HEADS = TINY.model_copy(update={"heads": {"1": {"none": [0, 2], "tsa": [3]}}})


def out(command: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    assert main(["profiles", *command]) == status
    captured = capsys.readouterr()
    return captured.err if status == 2 else captured.out


@pytest.fixture
def probed(tmp_path: Path) -> Path:
    """A profile with its measurements beside it."""
    axes = {"layers": [*range(8)], "heads": [*range(4)], "shifts": [20], "steps": [0], "prompts": ["a"]}
    values = torch.rand(8, 4, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tables = {
        "local.logits": Table(values, axes),
        "local.change": Table(
            values[:, :, 0].clone(), {name: labels for name, labels in axes.items() if name != "shifts"}
        ),
    }
    facts = ProbeFacts(
        profile=TINY, fingerprint="f" * 64, latent_frames=[81], prompts=["a"], seed=0, settings={}, versions={},
        command="made up",
    )  # fmt: skip
    Sensitivity(tables, facts).to_profile(tmp_path / "mine.json", rule=Rule(position=0.8), heads=True)
    return tmp_path / "mine.json"


@pytest.mark.parametrize("name", ["mine", "mine.safetensors", "wan2.1-fox", "mine.JSON"])
def test_a_profile_that_would_not_be_beside_its_measurements_is_not_written(probed: Path, name: str) -> None:
    found, before = Sensitivity.load(probed.with_suffix(".safetensors")), set(probed.parent.iterdir())
    with pytest.raises(ProbeError, match=r"expected a path that ends in \.json for the profile, found .*"):
        found.to_profile(probed.with_name(name))
    assert set(probed.parent.iterdir()) == before
    assert Sensitivity.load(probed.with_suffix(".safetensors")).depths == ["local"]


def test_show_prints_everything_in_a_profile(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(["show", str(probed)], capsys)
    profile = freeloc.load_profile(probed)
    assert profile.evidence is not None
    for words in (
        profile.model.name,
        "probed",
        profile.provenance.source,
        profile.provenance.notes,
        "wan, 8 layers, 4 heads of 48, trained on 21 latent frames",
        "flooring by distance; lengths with settings of their own: 41, 81",
        "dense_frames=8 striped_frames=24",
        profile.evidence.sha256[:12],
        profile.evidence.rule,
    ):
        assert words in shown
    for policy, layers in profile.layers.items():
        assert f"{policy:10} {len(layers):3} layers: {' '.join(map(str, layers))}" in shown
    assert profile.heads
    for layer in profile.heads:
        assert f"of layer {layer}, other than the layer: " in shown


def test_show_prints_settings_derived_by_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(["show", "mochi"], capsys)
    assert "none, all derived" in shown
    assert ", derived" in shown.splitlines()[-1]


def test_validate_reports_whether_the_measurements_exist(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it has no measurements" in out(["validate", "wan2.1"], capsys)
    assert "its measurements are beside it: local" in out(["validate", str(probed)], capsys)
    measurements = probed.with_suffix(".safetensors")
    whole = measurements.read_bytes()
    measurements.write_bytes(whole[:-1] + b"x")
    assert "does not hold the measurements of the profile beside it" in out(["validate", str(probed)], capsys, status=2)
    measurements.unlink()
    assert "its measurements are not beside it" in out(["validate", str(probed)], capsys)


def newer() -> Profile:
    """Of schema version 2."""
    policies = {"wide": PolicyPart(method="tsa", settings={"dense_frames": 9, "stripe": 0.5})}
    return with_choice(
        TINY.model_copy(update={"policies": policies, "evidence": None}),
        {"wide": [0, 1], "riflex": [2], "vrpr": [3, 4, 5, 6, 7]},
    )


def test_validate_reports_the_version_and_how_to_write_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = out(["validate", "wan2.1", "latte"], capsys)
    first, second, *rest = message.splitlines()
    assert first == "wan2.1: a valid profile of schema version 1; it has no measurements"
    assert second.startswith("latte: a valid profile of schema version 1; ")
    assert len(rest) == 2
    assert '"schema_version": 2' in rest[1]
    content = json.loads(profile_path("wan2.1").read_text()) | json.loads(f"{{{rest[1]}}}")  # written as it says
    content["layers"]["vrpr"] = [*range(2, 30)]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    message = out(["validate", str(tmp_path / "mine.json")], capsys)
    assert message == f"{tmp_path / 'mine.json'}: a valid profile of schema version 2; it has no measurements\n"
    assert freeloc.frame_plan(freeloc.load_profile(tmp_path / "mine.json"), 1, 81).stripe == 0.2


def test_show_and_diff_print_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer().save(tmp_path / "mine.json")
    shown = out(["show", str(tmp_path / "mine.json")], capsys).splitlines()
    assert "policy     wide: tsa, with dense_frames=9, stripe=0.5" in shown
    assert "riflex       1 layers: 2" in shown
    message = out(["diff", str(LAYER_CHOICE), str(tmp_path / "mine.json")], capsys, status=1).splitlines()
    for line in (
        "schema_version: 1 -> 2",
        "policies.wide.method: nothing -> tsa",
        "policies.wide.settings.stripe: nothing -> 0.5",
        "layers 0 1: vrpr -> wide",
        "layers 2: vrpr -> riflex",
    ):
        assert line in message


def test_methods_print_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["tsa"].endswith("; settings: dense_frames, striped_frames, stripe, sink_frames")
    assert lines["vrpr+tsa"].endswith("; settings: vrpr, tsa")
    assert "settings" not in lines["riflex"]


HOSTILE = "\x1b[2J\x1b]0;title\x07 red\nprovenance.kind: probed -> published \x9b31m \u202e"


def test_untrusted_profiles_cannot_control_the_terminal(
    probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = freeloc.load_profile(probed)
    assert profile.evidence is not None
    words = profile.provenance.model_copy(update={"source": HOSTILE, "notes": "long " * 200 + HOSTILE})
    update = {"provenance": words, "evidence": profile.evidence.model_copy(update={"rule": HOSTILE})}
    hostile = tmp_path / "hostile.json"
    profile.model_copy(update=update).save(hostile)
    shown = out(["show", str(hostile)], capsys)
    assert "long " * 200 + r"\x1b[2J\x1b]0;title\x07 red\nprov" in shown
    for message in (shown, out(["diff", str(probed), str(hostile)], capsys, status=1)):
        assert all(line.isprintable() for line in message.split("\n"))
        assert "provenance.kind: probed -> published" not in message.split("\n")


def test_untrusted_measurements_cannot_control_the_terminal(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Sensitivity.load(probed.with_suffix(".safetensors"))
    tables = {**found.tables, HOSTILE: found.table("local.change")}
    Sensitivity(tables, found.facts).to_profile(probed, depth="local")
    assert main(["profiles", "validate", str(probed)]) in (0, 2)  # reported, or refused
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).split("\n"))


def test_a_name_that_a_terminal_could_not_show_is_refused(probed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = probed.read_text()
    for name in (r"\u001b]0;title\u0007", r"two\nlines"):
        probed.write_text(text.replace(TINY.model.name, name))
        message = out(["show", str(probed)], capsys, status=2)
        assert "model.name: Value error, expected a name on one line without control characters, found '" in message
        assert all(line.isprintable() for line in message.split("\n"))


def test_a_file_beside_a_profile_without_measurements_is_not_its_measurements(probed: Path) -> None:
    assert measurements_path(probed) == probed.with_suffix(".safetensors")
    freeloc.load_profile(probed).model_copy(update={"evidence": None}).save(probed)
    assert measurements_path(probed) is None


def test_diff_of_the_same_and_of_two(probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert out(["diff", "wan2.1", "wan2.1"], capsys) == "no difference\n"
    assert "provenance.kind: published -> probed" in out(["diff", "wan2.1", str(probed)], capsys, status=1)
    assert "cannot read the profile" in out(["diff", "wan2.1", str(tmp_path / "none.json")], capsys, status=2)


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (TINY.model_copy(update={"layers": {"vrpr+tsa": [6, 5, 3], "vrpr": [7, 4, 2, 1, 0]}}), []),
        (HEADS, ["layer 1, heads 0 2: vrpr -> none", "layer 1, heads 3: vrpr -> tsa"]),
        (HEADS.model_copy(update={"heads": {"1": {"vrpr": [0]}}}), []),
        (
            with_layers(TINY, ["none", "none", "vrpr", "vrpr", "vrpr", "vrpr", "tsa", "vrpr"]),
            ["layers 0 1: vrpr -> none", "layers 3 5: vrpr+tsa -> vrpr", "layers 6: vrpr+tsa -> tsa"],
        ),
        (
            TINY.model_copy(update={"tsa": None, "adapter": "mochi"}),
            [
                "adapter: wan -> mochi",
                "tsa.dense_frames: 8 -> nothing",
                "tsa.striped_frames: 24 -> nothing",
                "tsa.stripe: 0.125 -> nothing",
                "tsa.sink_frames: 1 -> nothing",
            ],
        ),
    ],
)
def test_the_diff_lists_differences(other: Profile, lines: list[str]) -> None:
    assert differences(TINY, other) == lines


def test_heads_of_a_changed_layer_are_not_listed_twice() -> None:
    other = with_layers(TINY, ["vrpr", "none", *["vrpr"] * 6])
    found = differences(HEADS, other)
    assert "layers 1: vrpr -> none" in found
    assert "layer 1, heads 3: tsa -> none" in found
    assert not [line for line in found if line.startswith("layer 1, heads 0")]
