"""Untrusted measurements: any file is either read correctly or refused with one clear message."""

import json
import os
import re

import pytest
import torch
from conftest import make_profile
from hostile import clear, damaged, mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import freeloc
from freeloc.errors import ProbeError
from freeloc.probing.facts import LARGEST_HEADER, Header, ProbeFacts, read_header
from freeloc.probing.sensitivity import Sensitivity
from freeloc.probing.table import Table

QUICK = settings(max_examples=150, deadline=None)
FUZZ = settings(max_examples=5000, deadline=None)
TABLE = "local.change"


def measured():
    """Minimal measurements."""
    axes = {"layers": [0, 1, 2, 3], "heads": [0, 1], "steps": [0], "prompts": ["a"]}
    tables = {
        "local.logits": Table(torch.arange(8.0).reshape(4, 2, 1, 1, 1), {**axes, "shifts": [0.5]}),
        "local.change": Table(torch.arange(8.0).reshape(4, 2, 1, 1), axes),
    }
    facts = ProbeFacts(
        profile=make_profile(),
        fingerprint="f" * 64,
        latent_frames=[9],
        prompts=["a"],
        seed=0,
        settings={"local": {"shifts": [1, float("inf")]}},
        versions={"torch": "2"},
        command="a test",
    )
    return Sensitivity(tables, facts)


MEASURED = measured()
TENSORS = {name: table.values for name, table in MEASURED.tables.items()}
HEADER = Header(
    schema_version=1, facts=MEASURED.facts, axes={name: table.axes for name, table in MEASURED.tables.items()}
).model_dump_json()
WHOLE = save(TENSORS, {"freeloc": HEADER})


def measurements_or_refused(path):
    """Measurements that survive saving and can be shown; otherwise a clear refusal."""
    try:
        found = Sensitivity.load(path)
    except freeloc.errors.ProbeError as error:
        return clear(error, path)
    again = path.with_name("again.safetensors")
    found.save(again)
    kept = Sensitivity.load(again)
    assert repr(kept.facts) == repr(found.facts)  # NaN equals NaN here
    assert {name: table.axes for name, table in kept.tables.items()} == {n: t.axes for n, t in found.tables.items()}
    assert str(found)
    return None


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "bad.safetensors"
    MEASURED.save(path)
    return path


def mutated_measurements(text, path):
    save_file(TENSORS, path, {"freeloc": text.encode("utf-8", "replace").decode()})
    measurements_or_refused(path)


@QUICK
@given(text=mutated(HEADER))
def test_any_change_of_metadata_is_read_or_refused(text, measurements):
    mutated_measurements(text, measurements)


@st.composite
def claimed(draw):
    """A safetensors file whose tensors claim to be something else."""
    size = int.from_bytes(WHOLE[:8], "little")
    header = draw(mutated(WHOLE[8 : 8 + size].decode())).encode("utf-8", "replace")
    length = draw(st.just(len(header)) | st.sampled_from([0, 1, 10**8, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1))
    return length.to_bytes(8, "little") + header + WHOLE[8 + size :]


@QUICK
@given(data=claimed() | damaged(WHOLE))
def test_any_bytes_are_measurements_or_refused(data, measurements):
    measurements.write_bytes(data)
    measurements_or_refused(measurements)


@pytest.mark.slow
@FUZZ
@given(text=mutated(HEADER))
def test_many_changes_of_metadata_are_read_or_refused(text, measurements):
    mutated_measurements(text, measurements)


@pytest.mark.slow
@FUZZ
@given(data=claimed() | damaged(WHOLE))
def test_many_bytes_are_measurements_or_refused(data, measurements):
    measurements.write_bytes(data)
    measurements_or_refused(measurements)


def refused(path, words):
    with pytest.raises(freeloc.errors.ProbeError, match=words) as caught:
        Sensitivity.load(path)
    clear(caught.value, path)


def changed(*place, value):
    """The metadata with one change."""
    content = part = json.loads(HEADER)
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize("end", [0, 4, 8, 100, len(WHOLE) - 1])
def test_measurements_that_are_cut_off_are_refused(end, measurements):
    measurements.write_bytes(WHOLE[:end])
    refused(measurements, "cannot read the measurements .*bad.safetensors: ")


@pytest.mark.parametrize(
    "claim", [{"shape": [2**62, 4]}, {"shape": [10**9], "data_offsets": [0, 4 * 10**9]}, {"dtype": "F" * 9999}]
)
def test_tensors_with_false_shapes_or_dtypes_are_refused(claim, measurements):
    header = {"local.logits": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | claim}
    text = json.dumps(header).encode()
    measurements.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    refused(measurements, "cannot read the measurements .*bad.safetensors: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "bad.safetensors holds no measurements of freeloc: its metadata is not JSON: Expecting value"),
        ("[" * 100_000, "its metadata is not JSON: maximum recursion depth exceeded"),
        ("9" * 5000, "its metadata is not JSON: Exceeds the limit"),
        ("[" * 200 + "]" * 200, "expected metadata that is a JSON object, found "),
        (" " * (LARGEST_HEADER + 1), "expected metadata of at most 10000000 characters, found 10000001"),
        (HEADER[:-1] + ', "axes": {}}', "the field 'axes' is given 2 times"),
        (
            changed("schema_version", value=2),
            "expected measurements of schema_version 1, found 2. A newer .* pip install",
        ),
        (changed("schema_version", value=10**4000), "found 1000.* A newer file needs a newer freeloc: pip install"),
        (changed("schema_version", value=True), "expected measurements of schema_version 1, found True$"),
        (changed("schema_version", value=None), "expected measurements of schema_version 1, found None$"),
        (
            changed("facts", "profile", "layers", value={"vrpr": [0]}),
            "facts.profile: Value error, layers: all 4 layers",
        ),
        (changed("facts", "profile", "adapter", value=3), "adapter: Input should be a valid string, found 3"),
        (changed("facts", "settings", value=float("nan")), "facts.settings: .* a valid dictionary, found nan"),
        (changed("facts", "prompts", value=[1] * 5000), r"facts.prompts.0: .*\n(.*\n)*  and 4990 more$"),
        (changed("facts", "prompts", value=["\ud800"]), "bad.safetensors holds no measurements of freeloc: "),
        (changed("axes", TABLE, "steps", value=[float("nan")]), r"axes.local.change.steps.0.*, found nan"),
        (changed("axes", TABLE, "steps", value=[0, 1]), r"expected a tensor of shape \(4, 2, 2, 1\) for the axes"),
        (
            changed("axes", TABLE, "layers", value=[1, 2, 3, 4]),
            r"'local.change': expected layers 0 to 3 in order, found \[1",
        ),
        (
            changed("axes", TABLE, "layers", value=[3, 2, 1, 0]),
            r"expected layers 0 to 3 in order, found \[3, 2, 1, 0\]",
        ),
        (changed("axes", TABLE, "heads", value=["a", 0]), r"expected heads 0 to 1 in order, found \['a', 0\]"),
        (changed("axes", value={}), r"expected the tensors \[\], found \['local.change', 'local.logits'\]"),
    ],
    ids=lambda text: None if len(text) > 60 else text,
)
def test_errors_in_measurements_are_reported(text, words, measurements):
    save_file(TENSORS, measurements, {"freeloc": text.encode("utf-8", "replace").decode()})
    refused(measurements, words)


@pytest.mark.parametrize(
    "name", ["local./../../mine", "../local.logits", "local.a/b", "local", "local.", "lo\\cal.x\n"]
)
def test_names_of_tables_that_are_no_names_of_files_are_refused(name, measurements):
    content = json.loads(HEADER)
    content["axes"][name] = content["axes"]["local.logits"]
    save_file({**TENSORS, name: TENSORS["local.logits"].clone()}, measurements, {"freeloc": json.dumps(content)})
    refused(measurements, "expected tables with names such as 'local.logits', found ")


def test_measurements_nested_deeper_than_can_be_written_are_refused(measurements):
    deep = [0]
    for _ in range(400):
        deep = [deep]
    save_file(TENSORS, measurements, {"freeloc": changed("facts", "settings", value={"deep": deep})})
    refused(measurements, "bad.safetensors holds no measurements of freeloc: .*depth")


def test_a_safetensors_file_of_something_else_is_refused(measurements):
    save_file(TENSORS, measurements)
    refused(measurements, "holds no measurements of freeloc: expected metadata named 'freeloc', found none")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_tensors_that_cannot_be_averaged_are_refused(dtype, measurements):
    save_file({name: values.to(dtype) for name, values in TENSORS.items()}, measurements, {"freeloc": HEADER})
    refused(measurements, f"expected tensors of floating-point numbers, found {dtype}")


def test_measurements_of_no_known_depth_say_so_when_they_are_asked():
    found = Sensitivity({"other.value": Table(torch.zeros(1), {"layers": [0]})}, MEASURED.facts)
    words = r"found depth 'other' with the tables \['other.value'\]: install the package that registers it"
    assert re.search(words, str(found))
    for ask in (found.summary, found.to_profile, found.picture, lambda: found.summary("other")):
        with pytest.raises(freeloc.errors.ProbeError, match=words):
            ask()


def test_tables_without_an_axis_say_which_axes_they_have():
    table = Table(torch.zeros(1), {"steps": [0]})
    with pytest.raises(
        freeloc.errors.ProbeError, match=r"expected the axes \['layers'\], found no layers among \['steps'\]"
    ):
        table.over("layers")
    with pytest.raises(freeloc.errors.ProbeError, match=r"expected an axis 'perturbations', found \['steps'\]"):
        table.without(perturbations="window")


def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        freeloc.errors.ProbeError, match=r"pipe: expected a file of at most 250000000 bytes, found a folder"
    ):
        Sensitivity.load(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["n" * 255, "a\x00", "note.txt/mine"], ids=lambda name: name[:10])
def test_names_that_no_file_can_have_are_refused_on_writing(name, tmp_path):
    (tmp_path / "note.txt").touch()
    with pytest.raises(freeloc.errors.ProbeError, match="cannot write "):
        MEASURED.save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["note.txt"]


def test_infinity_among_the_settings_survives_the_disk(tmp_path):
    MEASURED.save(tmp_path / "found.safetensors")
    assert Sensitivity.load(tmp_path / "found.safetensors").facts == MEASURED.facts


def test_no_profile_is_chosen_from_some_of_the_layers():
    tables = {
        name: Table(table.values[:3], {**table.axes, "layers": [0, 1, 2]}) for name, table in MEASURED.tables.items()
    }
    with pytest.raises(
        freeloc.errors.ProfileError, match=r"what was chosen is not a profile:\n.* none for 1 of them, first layer 3"
    ):
        Sensitivity(tables, MEASURED.facts).to_profile()


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ProbeError, match="holds no measurements of freeloc: its metadata is not JSON"):
        read_header('{"schema_version": 1, "facts": {"versions": {"\\ud800": "2"}}}', "this file")
