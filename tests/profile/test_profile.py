"""Profiles on disk: what is shipped, and what survives saving."""

import contextlib
from pathlib import Path

import pytest
from conftest import make_profile
from hypothesis import given, settings
from hypothesis import strategies as st

import freeloc
from freeloc.profile.schema import POLICIES

SHIPPED = {  # layers, heads, head_dim, trained latent frames, provenance
    "wan2.1": (30, 12, 128, 21, "published"),
    "wan2.1-14b": (40, 40, 128, 21, "default"),
    "wan2.2-a14b": (40, 40, 128, 21, "default"),
    "wan2.2-ti2v-5b": (30, 24, 128, 31, "default"),
    "tiny-wan": (8, 4, 48, 21, "probed"),
    "tiny-film": (6, 3, 64, 13, "probed"),
}

PUBLISHED_SPARSE = [0, 1, 4, 6, 7, 9, 10, 11, 13, 14, 15, 16, 18, 22, 23, 24, 25]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles(name):
    profile = freeloc.load_profile(name)
    model, expected = profile.model, SHIPPED[name]
    assert (model.layers, model.heads, model.head_dim, model.trained_latent_frames) == expected[:4]
    assert profile.provenance.kind == expected[4] or expected[4] is None
    assert profile.provenance.source


def test_the_published_layers():
    profile = freeloc.load_profile("wan2.1")
    sparse = [layer for layer in range(30) if profile.policy(layer) == "vrpr+tsa"]
    assert sparse == PUBLISHED_SPARSE
    assert all(profile.policy(layer) == "vrpr" for layer in range(30) if layer not in sparse)
    assert (profile.tsa.dense_frames, profile.tsa.striped_frames, profile.tsa.stripe) == (8, 24, 0.125)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "profiles").glob("*.json")), ids=lambda p: p.stem)
def test_shipped_files_are_as_save_writes_them(path, tmp_path):
    freeloc.load_profile(path).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_printable_characters_are_saved_unescaped_and_others_escaped(tmp_path):
    notes = 'Größe "1.3B", 风景 🦊 \\ \n \x1b[2J \x9b \u202e \u2028 \ufeff \U000e0041'
    profile = make_profile(provenance={"kind": "probed", "source": "a test", "notes": notes})
    profile.save(tmp_path / "mine.json")
    text = (tmp_path / "mine.json").read_bytes().decode()
    escaped = r'"Größe \"1.3B\", 风景 🦊 \\ \n \u001b[2J \u009b \u202e \u2028 \ufeff \udb40\udc41"'
    assert f'"notes": {escaped}' in text
    assert freeloc.load_profile(tmp_path / "mine.json") == profile


@st.composite
def profiles(draw):
    count = draw(st.integers(1, 12))
    choice = draw(st.lists(st.sampled_from(POLICIES), min_size=count, max_size=count))
    layers = {policy: [layer for layer, chosen in enumerate(choice) if chosen == policy] for policy in set(choice)}
    small = st.integers(0, 9)
    near, wider, group, coarser = draw(small), draw(small), 1 + draw(small), draw(small)
    tiers = {"near_frames": near, "mid_frames": near + wider, "mid_group": group, "far_group": group + coarser}
    dense, striped = draw(small), draw(small)
    sparse = {"dense_frames": dense, "striped_frames": dense + striped, "stripe": draw(st.floats(0.01, 1))}
    lengths = draw(st.lists(st.integers(1, 10**6 - 1).map(str), max_size=3))
    return make_profile(
        layers,
        trained_latent_frames=draw(st.integers(1, 99)),
        vrpr={"flooring": draw(st.sampled_from(["distance", "position"])), "lengths": dict.fromkeys(lengths, tiers)},
        tsa=draw(st.sampled_from([None, sparse])),
        provenance={
            "kind": "probed",
            "source": draw(st.text(max_size=20)),
            "notes": draw(st.text('[]{},:"\\n\\\\ ä\x9b\u2028')),
        },
    )


@settings(max_examples=60, deadline=None)
@given(profile=profiles())
def test_any_profile_survives_the_disk(profile, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "one.json"
    profile.save(path)
    assert freeloc.load_profile(path) == profile
    text = path.read_bytes()
    freeloc.load_profile(path).save(path)
    assert path.read_bytes() == text
    assert [file.name for file in path.parent.iterdir()] == ["one.json"]


@pytest.fixture
def file_size_limit():
    """Limits files of this process to 100 bytes: later writes fail, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


def test_saving_is_atomic(tmp_path, file_size_limit):
    path = tmp_path / "mine.json"
    make_profile().save(path)
    before = path.read_bytes()
    with (
        pytest.raises(freeloc.errors.ProfileError, match=r"cannot write the profile .*: File too large"),
        file_size_limit(),
    ):
        make_profile({"tsa": [0, 1]}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_over_a_folder_leaves_nothing_beside_it(tmp_path):
    folder = tmp_path / "mine.json"
    folder.mkdir()
    with pytest.raises(freeloc.errors.ProfileError, match=r"cannot write the profile .*: Is a directory"):
        make_profile().save(folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    make_profile().save(tmp_path / "mine.json")
    (tmp_path / "other").touch()
    assert (tmp_path / "mine.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_into_a_missing_folder(tmp_path):
    with pytest.raises(freeloc.errors.ProfileError, match=r"cannot write the profile .*: No such file or directory"):
        make_profile().save(tmp_path / "nowhere" / "mine.json")
