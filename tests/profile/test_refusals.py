"""Files that are not profiles, and profiles that do not fit a model: each error says what is wrong."""

import json

import pytest
from conftest import make_profile, make_wan

import freeloc


class TestRefusals:
    def refused(self, tmp_path, text):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(freeloc.errors.ProfileError) as caught:
            freeloc.load_profile(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

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

    @pytest.mark.parametrize("version", [4, 0, -1, "1", None])
    def test_another_version(self, tmp_path, version):
        message = self.changed(tmp_path, schema_version=version)
        assert f"expected schema_version 1, 2 or 3, found {version!r}" in message
        assert ("pip install --upgrade freeloc" in message) == (version == 4)

    def test_no_version(self, tmp_path):
        content = make_profile().model_dump(exclude={"schema_version"})
        assert "expected schema_version 1, 2 or 3, found None" in self.refused(tmp_path, json.dumps(content))

    @pytest.mark.parametrize("version", [True, 1.0])
    def test_a_version_that_only_equals_one(self, tmp_path, version):
        assert f"expected schema_version 1, 2 or 3, found {version!r}" in self.changed(tmp_path, schema_version=version)

    def test_a_field_twice(self, tmp_path):
        text = json.dumps(make_profile().model_dump())
        assert "adapter" in self.refused(tmp_path, text[:-1] + ', "adapter": "other"}')

    @pytest.mark.parametrize("depth", [10, 500, 900, 980, 990])  # near the limit of recursion, too
    def test_a_deeply_nested_value(self, tmp_path, depth):
        text = json.dumps(make_profile().model_dump())
        message = self.refused(tmp_path, text[:-1] + f', "deep": {"[" * depth}{"]" * depth}}}')
        assert "deep: Extra inputs are not permitted" in message or "is not JSON: maximum recursion depth" in message

    def test_fields_that_are_missing_are_all_named(self, tmp_path):
        message = self.refused(tmp_path, '{"schema_version": 1, "adapter": "wan", "model": {"name": "a", "layers": 4}}')
        for field in ("model.heads", "model.head_dim", "model.trained_latent_frames", "layers", "provenance"):
            assert f"\n  {field}: Field required" in message

    @pytest.mark.parametrize(
        ("layers", "message"),
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
    def test_layers(self, tmp_path, layers, message):
        assert message in self.changed(tmp_path, layers=layers)

    @pytest.mark.parametrize(
        ("change", "message"),
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
    def test_fields(self, tmp_path, change, message):
        assert message in self.changed(tmp_path, **change)

    def test_the_error_for_another_number_of_layers_gives_both_numbers(self):
        model = make_wan(num_layers=5)
        with pytest.raises(
            freeloc.errors.ProfileError, match=r"expected 30 layers, found 5; 12 heads, found 2; 128 head_dim"
        ):
            freeloc.patch(model, "wan2.1")

    def test_thirty_layers_do_not_fit_forty(self):
        with pytest.raises(freeloc.errors.ProfileError) as caught:
            freeloc.patch(make_wan(num_layers=40), make_profile({"vrpr": list(range(30))}))
        expected = (
            "the profile for small does not fit this model: expected 30 layers, found 40. Installed profiles that fit: "
        )
        assert str(caught.value).startswith(expected)
        assert "freeloc.default_profile(model, trained_latent_frames=...) makes one" in str(caught.value)

    def test_installed_profiles_that_fit_are_named(self):
        model = make_wan(num_layers=8, num_attention_heads=4, attention_head_dim=48)
        with pytest.raises(freeloc.errors.ProfileError, match=r"Installed profiles that fit: tiny-wan\."):
            freeloc.patch(model, "wan2.1")

    def test_the_error_for_another_family_names_both(self, small_wan):
        with pytest.raises(freeloc.errors.ProfileError, match="expected the adapter 'hunyuan', found 'wan'"):
            freeloc.patch(small_wan, make_profile(adapter="hunyuan"))
