"""Profiles on disk: what is shipped, what survives saving, and how each way to be wrong is told."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import make_profile, make_wan
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st

import freeloc
from freeloc.profile.schema import POLICIES
from freeloc.registry import registry

SHIPPED = {  # layers, heads, head_dim, trained latent frames, provenance
    "wan2.1": (30, 12, 128, 21, "published"),
    "wan2.1-14b": (40, 40, 128, 21, "default"),
    "wan2.2-a14b": (40, 40, 128, 21, "default"),
    "wan2.2-ti2v-5b": (30, 24, 128, 31, "default"),
    "tiny-wan": (8, 4, 48, 21, None),
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


def test_letters_are_saved_as_they_are_and_what_is_not_seen_is_escaped(tmp_path):
    notes = 'Größe "1.3B", 风景 🦊 \\ \n \x1b[2J \x9b \u202e \u2028 \ufeff \U000e0041'
    profile = make_profile(provenance={"kind": "probed", "source": "a test", "notes": notes})
    profile.save(tmp_path / "mine.json")
    text = (tmp_path / "mine.json").read_bytes().decode()
    told = r'"Größe \"1.3B\", 风景 🦊 \\ \n \u001b[2J \u009b \u202e \u2028 \ufeff \udb40\udc41"'
    assert f'"notes": {told}' in text
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
def little_room():
    """Files of this process cannot grow beyond 100 bytes: what is written after them fails, as on a full disk."""
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


def test_saving_is_whole_or_not_at_all(tmp_path, little_room):
    path = tmp_path / "mine.json"
    make_profile().save(path)
    before = path.read_bytes()
    with (
        pytest.raises(freeloc.errors.ProfileError, match=r"cannot write the profile .*: File too large"),
        little_room(),
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


def test_a_saved_file_may_be_read_by_whom_any_new_file_may(tmp_path):
    make_profile().save(tmp_path / "mine.json")
    (tmp_path / "other").touch()
    assert (tmp_path / "mine.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_into_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(freeloc.errors.ProfileError, match=r"cannot write the profile .*: No such file or directory"):
        make_profile().save(tmp_path / "nowhere" / "mine.json")


class TestRefusals:
    def refused(self, tmp_path, text):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(freeloc.errors.ProfileError) as told:
            freeloc.load_profile(path)
        assert str(path) in str(told.value)
        return str(told.value)

    def changed(self, tmp_path, **changes):
        content = make_profile().model_dump()
        for place, value in changes.items():
            *outer, last = place.split("__")
            part = content
            for name in outer:
                part = part[name]
            part[last] = value
        return self.refused(tmp_path, json.dumps(content))

    def test_an_unknown_name(self):
        with pytest.raises(freeloc.errors.ProfileError, match=r"no profile is named 'wan2\.1b'; did you mean wan2\.1"):
            freeloc.load_profile("wan2.1b")

    def test_a_missing_file(self):
        with pytest.raises(
            freeloc.errors.ProfileError, match=r"cannot read the profile mine\.json: No such file or directory"
        ):
            freeloc.load_profile("mine.json")

    def test_a_folder(self, tmp_path):
        folder = tmp_path / "folder.json"
        folder.mkdir()
        with pytest.raises(
            freeloc.errors.ProfileError,
            match=r"cannot read the profile .*: expected a file of at most 1000000 bytes, found a folder",
        ):
            freeloc.load_profile(folder)

    @pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1,}', "\x00", "[" * 100_000])
    def test_not_json(self, tmp_path, text):
        assert "is not JSON" in self.refused(tmp_path, text)

    def test_not_text(self, tmp_path):
        path = tmp_path / "bad.json"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(freeloc.errors.ProfileError, match="is not JSON"):
            freeloc.load_profile(path)

    @pytest.mark.parametrize("text", ["[]", "1", '"wan"', "null"])
    def test_json_that_is_no_object(self, tmp_path, text):
        assert "is not a profile" in self.refused(tmp_path, text)

    @pytest.mark.parametrize("version", [3, 0, -1, "1", None])
    def test_another_version(self, tmp_path, version):
        told = self.changed(tmp_path, schema_version=version)
        assert f"expected schema_version 1 or 2, found {version!r}" in told
        assert ("pip install --upgrade freeloc" in told) == (version == 3)

    def test_no_version(self, tmp_path):
        content = make_profile().model_dump(exclude={"schema_version"})
        assert "expected schema_version 1 or 2, found None" in self.refused(tmp_path, json.dumps(content))

    @pytest.mark.parametrize("version", [True, 1.0])
    def test_a_version_that_only_equals_one(self, tmp_path, version):
        assert f"expected schema_version 1 or 2, found {version!r}" in self.changed(tmp_path, schema_version=version)

    def test_a_field_twice(self, tmp_path):
        text = json.dumps(make_profile().model_dump())
        assert "adapter" in self.refused(tmp_path, text[:-1] + ', "adapter": "other"}')

    @pytest.mark.parametrize("depth", [10, 500, 900, 980, 990])  # near the limit of recursion, too
    def test_a_deeply_nested_value(self, tmp_path, depth):
        text = json.dumps(make_profile().model_dump())
        told = self.refused(tmp_path, text[:-1] + f', "deep": {"[" * depth}{"]" * depth}}}')
        assert "deep: Extra inputs are not permitted" in told or "is not JSON: maximum recursion depth" in told

    def test_fields_that_are_missing_are_all_named(self, tmp_path):
        told = self.refused(tmp_path, '{"schema_version": 1, "adapter": "wan", "model": {"name": "a", "layers": 4}}')
        for field in ("model.heads", "model.head_dim", "model.trained_latent_frames", "layers", "provenance"):
            assert f"\n  {field}: Field required" in told

    @pytest.mark.parametrize(
        ("layers", "told"),
        [
            ({"vrpr": [0, 1, 2, 3], "tsa": [2]}, "each layer once, found layer 2 twice"),
            ({"vrpr": [0, 1, 1, 2, 3]}, "each layer once, found layer 1 twice"),
            ({"vrpr": [0, 1]}, "all 4 layers, found none for 2 of them, first layer 2"),
            ({"vrpr": [0, 1, 2, 3, 4]}, "0 to 3 for 4 layers, found 4"),
            ({"vprr": [0, 1, 2, 3]}, "Input should be 'none', 'vrpr', 'tsa' or 'vrpr+tsa', found 'vprr'"),
            ({"vrpr": [0, 1, 2, -1]}, "layers.vrpr.3: Input should be greater than or equal to 0, found -1"),
            ({"vrpr": [0, 1, 2, "3"]}, "layers.vrpr.3: Input should be a valid integer, found '3'"),
            ([0, 1, 2, 3], "layers: Input should be a valid dictionary"),
        ],
    )
    def test_layers(self, tmp_path, layers, told):
        assert told in self.changed(tmp_path, layers=layers)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"model__layers": "4"}, "model.layers: Input should be a valid integer, found '4'"),
            (
                {"model__trained_latent_frames": 0},
                "model.trained_latent_frames: Input should be greater than 0, found 0",
            ),
            ({"model__head_dim": 1.5}, "model.head_dim: Input should be a valid integer, found 1.5"),
            ({"model__heads": float("nan")}, "model.heads: Input should be a valid integer, found nan"),
            ({"model__heads": True}, "model.heads: Input should be a valid integer, found True"),
            ({"adapter": None}, "adapter: Input should be a valid string, found None"),
            ({"colour": "red"}, "colour: Extra inputs are not permitted, found 'red'"),
            ({"model__colour": 1}, "model.colour: Extra inputs are not permitted, found 1"),
            ({"tsa": {"dense_frames": 9, "striped_frames": 8}}, "dense_frames <= striped_frames, found 9 and 8"),
            ({"tsa": {"dense_frames": 1, "striped_frames": 8, "stripe": float("nan")}}, "tsa.stripe: Input should be"),
            ({"tsa": {"dense_frames": 1, "striped_frames": 8, "stripe": float("inf")}}, "tsa.stripe: Input should be"),
            ({"vrpr__lengths": {"0": {}}}, "vrpr.lengths.0"),
            ({"vrpr__flooring": "up"}, "vrpr.flooring: Input should be 'distance' or 'position', found 'up'"),
            ({"provenance__kind": "true"}, "provenance.kind: Input should be 'published', 'probed' or 'default'"),
        ],
    )
    def test_fields(self, tmp_path, change, told):
        assert told in self.changed(tmp_path, **change)

    def test_a_profile_for_another_number_of_layers_says_both(self):
        model = make_wan(num_layers=5)
        with pytest.raises(
            freeloc.errors.ProfileError, match=r"expected 30 layers, found 5; 12 heads, found 2; 128 head_dim"
        ):
            freeloc.patch(model, "wan2.1")

    def test_thirty_layers_do_not_fit_forty(self):
        with pytest.raises(freeloc.errors.ProfileError) as told:
            freeloc.patch(make_wan(num_layers=40), make_profile({"vrpr": list(range(30))}))
        expected = (
            "the profile for small does not fit this model: expected 30 layers, found 40. Installed profiles that fit: "
        )
        assert str(told.value).startswith(expected)
        assert "freeloc.default_profile(model, trained_latent_frames=...) makes one" in str(told.value)

    def test_installed_profiles_that_fit_are_named(self):
        model = make_wan(num_layers=8, num_attention_heads=4, attention_head_dim=48)
        with pytest.raises(freeloc.errors.ProfileError, match=r"Installed profiles that fit: tiny-wan\."):
            freeloc.patch(model, "wan2.1")

    def test_a_profile_for_another_family_says_both(self, small_wan):
        with pytest.raises(freeloc.errors.ProfileError, match="expected the adapter 'hunyuan', found 'wan'"):
            freeloc.patch(small_wan, make_profile(adapter="hunyuan"))


def released_wan(layers, heads):
    """A Wan of the true size of a released one, without its weights."""
    with torch.device("meta"):
        return WanTransformer3DModel(num_layers=layers, num_attention_heads=heads, attention_head_dim=128)


class TestNoProfileGiven:
    def test_the_one_that_fits_is_used(self):
        with freeloc.patch(released_wan(30, 12)) as patch:
            assert patch.profile == freeloc.load_profile("wan2.1")

    def test_none_fits(self, small_wan):
        wording = (
            r"expected profile=\.\.\. for this WanTransformer3DModel: none installed fits\. "
            r"freeloc\.default_profile\(model, trained_latent_frames=\.\.\.\) makes"
        )
        with pytest.raises(freeloc.errors.ProfileError, match=wording):
            freeloc.patch(small_wan)

    def test_several_fit(self):
        with pytest.raises(
            freeloc.errors.ProfileError, match=r"several installed ones fit: wan2\.1-14b, wan2\.2-a14b\."
        ):
            freeloc.patch(released_wan(40, 40))

    @pytest.mark.parametrize(("layers", "heads", "kind"), [(30, 12, "published"), (40, 40, "default")])
    def test_a_method_needs_no_choice_among_them(self, layers, heads, kind):
        with freeloc.patch(released_wan(layers, heads), method="riflex") as patch:
            assert patch.profile.provenance.kind == kind
            assert patch.profile.model.trained_latent_frames == 21

    def test_a_method_for_a_model_of_unknown_trained_length(self, small_wan):
        with pytest.raises(freeloc.errors.AdapterError, match="is not known: make a profile with "):
            freeloc.patch(small_wan, method="riflex")


class TestOneMoreProfile:
    """A pull request or a package adds a profile for a model that has one already."""

    @pytest.fixture
    def install(self, monkeypatch, tmp_path):
        def one(name, like, kind="probed", **changes):
            profile = freeloc.load_profile(like)
            provenance = profile.provenance.model_copy(update={"kind": kind})
            profile = profile.model_copy(update={"provenance": provenance, "layers": {"tsa": [*range(30)]}} | changes)
            profile.save(tmp_path / f"{name}.json")
            monkeypatch.setitem(registry().profiles.owners, name, [("a package", tmp_path / f"{name}.json")])
            return profile

        return one

    @pytest.mark.parametrize("method", [None, "vrpr"])
    @pytest.mark.parametrize("kind", ["probed", "default"])
    def test_the_published_one_stays(self, install, kind, method):
        without_settings = {"vrpr": freeloc.load_profile("mochi").vrpr, "tsa": None}
        install("another", "wan2.1", kind, **without_settings)
        with freeloc.patch(released_wan(30, 12), method=method) as patch:
            assert patch.profile == freeloc.load_profile("wan2.1")

    def test_a_probed_one_comes_before_default_ones(self, install):
        probed = install("another", "wan2.2-ti2v-5b")
        with freeloc.patch(released_wan(30, 24)) as patch:
            assert patch.profile == probed

    def test_two_of_the_best_kind_are_named_unless_a_method_needs_no_more_than_they_agree_on(self, install):
        install("another", "wan2.1", "published")
        model, both = released_wan(30, 12), r"several installed ones fit: another, wan2\.1\. freeloc\."
        with pytest.raises(freeloc.errors.ProfileError, match=both):
            freeloc.patch(model)
        with freeloc.patch(model, method="vrpr") as patch:
            wan = freeloc.load_profile("wan2.1")
            assert (patch.profile.vrpr, patch.profile.tsa) == (wan.vrpr, wan.tsa)
            assert patch.profile.provenance.kind == "default"
        install("another", "wan2.1", "published", tsa=None)
        with pytest.raises(freeloc.errors.ProfileError, match=both):
            freeloc.patch(model, method="vrpr")

    @pytest.mark.parametrize("method", [None, "vrpr"])
    def test_another_trained_length_is_told(self, install, method):
        facts = freeloc.load_profile("wan2.1").model.model_copy(update={"trained_latent_frames": 41})
        install("longer", "wan2.1", model=facts)
        told = r"the installed ones that fit differ in the trained length: longer \(41\), wan2\.1 \(21\)\. freeloc\."
        with pytest.raises(freeloc.errors.ProfileError, match=told):
            freeloc.patch(released_wan(30, 12), method=method)


class TestDefaultProfile:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_one_policy_on_every_layer_and_says_that_it_is_not_measured(self, small_wan, policy):
        profile = freeloc.default_profile(small_wan, policy, trained_latent_frames=4)
        assert [profile.policy(layer) for layer in range(4)] == [policy] * 4
        assert profile.provenance.kind == "default"
        assert "Not measured" in profile.provenance.notes
        freeloc.patch(small_wan, profile).remove()

    def test_the_trained_length_is_taken_from_installed_profiles_for_such_a_model(self):
        model = make_wan(num_layers=8, num_attention_heads=4, attention_head_dim=48)
        assert freeloc.default_profile(model).model.trained_latent_frames == 21

    @pytest.mark.parametrize(("layers", "heads", "length"), [(30, 12, 21), (40, 40, 21), (30, 24, 31)])
    def test_the_trained_length_of_released_models(self, layers, heads, length):
        assert freeloc.default_profile(released_wan(layers, heads)).model.trained_latent_frames == length

    def test_a_given_trained_length_wins(self):
        model = make_wan(num_layers=8, num_attention_heads=4, attention_head_dim=48)
        assert freeloc.default_profile(model, trained_latent_frames=9).model.trained_latent_frames == 9

    def test_an_unknown_trained_length(self, small_wan):
        message = "the trained length of this WanTransformer3DModel (4 layers, 2 heads) is not known: make"
        with pytest.raises(freeloc.errors.AdapterError, match=re.escape(message)):
            freeloc.default_profile(small_wan)

    def test_a_policy_that_there_is_not(self, small_wan):
        with pytest.raises(freeloc.errors.ProfileError, match=r"one of none, vrpr, tsa, vrpr\+tsa, found 'vprr'"):
            freeloc.default_profile(small_wan, "vprr", trained_latent_frames=4)

    @pytest.mark.parametrize("length", [0, -3, 2.5])
    def test_a_length_that_makes_no_sense(self, small_wan, length):
        with pytest.raises(freeloc.errors.ProfileError, match=r"model\.trained_latent_frames"):
            freeloc.default_profile(small_wan, trained_latent_frames=length)
