"""Which profile a model gets: the installed one that fits, or a default one."""

import re

import pytest
import torch
from conftest import make_wan
from diffusers import WanTransformer3DModel

import freeloc
from freeloc.profile.schema import POLICIES
from freeloc.registry import registry


def released_wan(layers, heads):
    """A Wan of the size of a released model, without weights."""
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
            profile.save(tmp_path / f"{name}.json")  # in the oldest schema version that has what it uses
            monkeypatch.setitem(registry().profiles.owners, name, [("a package", tmp_path / f"{name}.json")])
            return freeloc.load_profile(tmp_path / f"{name}.json")

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

    def test_two_of_the_best_kind_are_an_error_unless_the_method_only_needs_settings_they_share(self, install):
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
    def test_different_trained_lengths_are_an_error_that_lists_them(self, install, method):
        facts = freeloc.load_profile("wan2.1").model.model_copy(update={"trained_latent_frames": 41})
        install("longer", "wan2.1", model=facts)
        message = r"the installed ones that fit differ in the trained length: longer \(41\), wan2\.1 \(21\)\. freeloc\."
        with pytest.raises(freeloc.errors.ProfileError, match=message):
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

    def test_an_unknown_policy(self, small_wan):
        with pytest.raises(freeloc.errors.ProfileError, match=r"one of none, vrpr, tsa, vrpr\+tsa, found 'vprr'"):
            freeloc.default_profile(small_wan, "vprr", trained_latent_frames=4)

    @pytest.mark.parametrize("length", [0, -3, 2.5])
    def test_an_invalid_length(self, small_wan, length):
        with pytest.raises(freeloc.errors.ProfileError, match=r"model\.trained_latent_frames"):
            freeloc.default_profile(small_wan, trained_latent_frames=length)
