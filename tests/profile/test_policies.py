"""Any registered method as the policy of layers and heads, with settings of its own: schema version 2."""

import gc
import json
import re

import pytest
import torch
from conftest import make_profile
from oracle import use_oracle_of
from pydantic import BaseModel, ConfigDict, Field

import freeloc
from freeloc import FramePlan, FreelocError, frame_plan
from freeloc.errors import PatchError, ProfileError
from freeloc.plans.baselines import riflex, sliding_window, ultravico
from freeloc.plans.method import Method
from freeloc.plans.tsa import TsaSettings, tsa_plan
from freeloc.plans.vrpr import vrpr_positions
from freeloc.profile import policies
from freeloc.profile.files import validated, with_choice
from freeloc.profile.planning import layer_plans, methods_used, noise_method, policy_plan, policy_plans, resolve_method
from freeloc.profile.schema import POLICIES, Profile
from freeloc.registry import registry

POLICY_CHOICE = {"wide": [0], "riflex": [1], "vrpr": [2], "soft": [3]}
DEFINED = {
    "wide": {"method": "tsa", "settings": {"dense_frames": 2, "striped_frames": 3}},
    "soft": {"method": "decay", "settings": {"factor": 0.5}},
}


class Decay(BaseModel):
    model_config = ConfigDict(extra="forbid")

    factor: float = Field(gt=0, le=1)
    tiers: tuple[int, ...] = ()


def decay(profile, layer, frames, settings):
    assert isinstance(settings, Decay)
    return ultravico(frames, profile.model.trained_latent_frames, settings.factor)


def per_head(profile, layer, frames):
    """In odd layers, a window for the first head and no change for the second; no change in even layers."""
    trained = profile.model.trained_latent_frames
    return [sliding_window(frames, trained) if layer % 2 else FramePlan.identity(frames), FramePlan.identity(frames)]


@pytest.fixture(autouse=True)
def _plugin(monkeypatch):
    """A plugin with a method that requires settings, one without settings, and one that treats heads differently."""
    for method in (
        Method("decay", decay, settings=Decay),
        Method("window", lambda profile, layer, frames: sliding_window(frames, 2)),
        Method("per-head", per_head),
    ):
        monkeypatch.setitem(registry().methods.owners, method.name, [("a package", method)])


def content(**changes):
    base = make_profile().model_dump(exclude_none=True) | {"schema_version": 2, "layers": POLICY_CHOICE}
    return base | {"policies": DEFINED} | changes


def loaded(**changes):
    return validated(content(**changes), "mine.json")


def refused(**changes):
    with pytest.raises(ProfileError) as caught:
        loaded(**changes)
    first, *lines = str(caught.value).split("\n")
    assert first == "mine.json is not a profile:"
    return "\n".join(lines)


class TestPlans:
    def test_each_layer_has_its_own_method_and_settings(self):
        profile = loaded()
        tiers = TsaSettings(dense_frames=2, striped_frames=3)
        assert frame_plan(profile, 0, 9).same_as(tsa_plan(9, 4, tiers))
        assert frame_plan(profile, 1, 9).same_as(riflex(9, 4))
        assert torch.equal(frame_plan(profile, 2, 9).positions, vrpr_positions(9, 4))
        assert frame_plan(profile, 3, 9).same_as(ultravico(9, 4, 0.5))

    def test_any_registered_method_is_a_policy_of_any_profile(self):
        for name in ("riflex", "window", "none"):
            _, plan = resolve_method(name)
            assert policy_plan(make_profile(), name, 9).same_as(plan(make_profile(), 0, 9))

    def test_settings_that_a_policy_leaves_out_come_from_the_profile(self):
        own = {"dense_frames": 1, "striped_frames": 3, "stripe": 0.3, "sink_frames": 2}
        both = {"method": "vrpr+tsa", "settings": {"tsa": {"dense_frames": 0, "striped_frames": 1}}}
        profile = loaded(
            tsa=own,
            vrpr={"flooring": "position"},
            policies={"wide": {"method": "tsa", "settings": {"stripe": 0.5}}, "both": both},
            layers={"wide": [0], "both": [1], "tsa": [2], "vrpr+tsa": [3]},
        )
        assert frame_plan(profile, 0, 9).same_as(tsa_plan(9, 4, TsaSettings(**(own | {"stripe": 0.5}))))
        assert frame_plan(profile, 2, 9).same_as(tsa_plan(9, 4, TsaSettings(**own)))
        by_position, sparse = vrpr_positions(9, 4, flooring="position"), TsaSettings(dense_frames=0, striped_frames=1)
        plan = frame_plan(profile, 1, 9)
        assert torch.equal(plan.positions, by_position)
        assert torch.equal(plan.visibility, tsa_plan(9, 4, sparse).visibility)
        assert torch.equal(frame_plan(profile, 3, 9).visibility, tsa_plan(9, 4, TsaSettings(**own)).visibility)

    @pytest.mark.parametrize("frames", [1, 3, 4])
    def test_up_to_the_trained_length_a_profile_changes_nothing_for_any_method(self, frames):
        assert not sliding_window(4, 2).is_identity
        profile = loaded(policies={}, layers={"window": [0, 1], "per-head": [2], "vrpr": [3]})
        assert all(frame_plan(profile, layer, frames).is_identity for layer in range(4))
        assert all(layer_plans(profile, layer, frames).is_identity for layer in range(4))

    def test_heads_support_any_method_and_a_method_may_treat_them_differently(self):
        profile = loaded(policies={}, layers={"per-head": [0, 1], "vrpr": [2, 3]}, heads={"3": {"per-head": [0]}})
        alone, window = FramePlan.identity(9), sliding_window(9, 4)
        vrpr = policy_plan(profile, "vrpr", 9)
        expected = {0: [alone, alone], 1: [window, alone], 3: [window, vrpr]}
        for layer, plans in expected.items():
            assert [a.same_as(b) for a, b in zip(layer_plans(profile, layer, 9), plans, strict=True)] == [True, True]
            for head, plan in enumerate(plans):
                assert frame_plan(profile, layer, 9, head).same_as(plan)
        assert policy_plan(profile, "per-head", 9, layer=0).is_identity
        message = (
            "the policy 'per-head' gives the heads of layer 1 different plans: expected one of them, head=0 to 1, "
            "found head=None"
        )
        with pytest.raises(FreelocError, match=f"^{message}$"):
            frame_plan(profile, 1, 9)
        assert policy_plan(profile, "per-head", 9, layer=1, head=0).same_as(window)

    def test_a_method_that_returns_no_plan_is_refused(self, monkeypatch):
        returned = {
            "NoneType": None,
            "3": [FramePlan.identity(9)] * 3,
            "0": [],
            "one of 8 latent frames": FramePlan.identity(8),
            "int": [1, 2],
        }
        for found, plans in returned.items():
            method = Method("broken", lambda *_, plans=plans: plans)
            monkeypatch.setitem(registry().methods.owners, "broken", [("a package", method)])
            message = (
                "expected the method 'broken' to return a FramePlan of 9 latent frames, or 2, one per head, found "
            )
            with pytest.raises(FreelocError, match=f"^{message}{found}$"):
                policy_plans(make_profile(), "broken", 9)

    def test_a_policy_is_resolved_once_for_a_profile_and_forgotten_with_it(self, monkeypatch):
        checked = []
        monkeypatch.setattr(Decay, "model_validate_json", lambda text: checked.append(text) or Decay(factor=0.5))
        profile = Profile.model_validate(content())
        for frames in (5, 9, 9):
            frame_plan(profile, 3, frames)
        assert len(checked) == 1
        other = profile.model_copy(update={"policies": {}, "layers": {"vrpr": [0, 1, 2, 3]}})
        assert frame_plan(other, 3, 9).same_as(policy_plan(make_profile(), "vrpr", 9))
        key = id(profile)
        assert key in policies._RESOLVED
        del profile
        gc.collect()
        assert key not in policies._RESOLVED

    def test_a_model_with_another_method_in_each_layer_equals_the_oracle(self, small_wan, run):
        profile = loaded()
        oracle = use_oracle_of(small_wan, lambda layer, frames: frame_plan(profile, layer, frames), 3, 5)
        expected = run(oracle, 9)
        with freeloc.patch(small_wan, profile) as patch:
            assert (run(small_wan, 9) - expected).abs().max() <= 2e-5
        assert [line.method for line in patch.report().layers] == ["wide", "riflex", "vrpr", "soft"]

    def test_a_method_with_settings_is_patched_by_name_with_its_defaults(self, small_wan, run, monkeypatch):
        def default(profile):
            return Decay(factor=1 / profile.model.heads)

        method = Method("decay", decay, settings=Decay, defaults=default)
        monkeypatch.setitem(registry().methods.owners, "decay", [("a package", method)])
        _, plan = resolve_method("decay")
        assert plan(make_profile(), 0, 9).same_as(ultravico(9, 4, 0.5))
        assert resolve_method(method)[1](make_profile(), 0, 9).same_as(ultravico(9, 4, 0.5))
        with freeloc.patch(small_wan, make_profile(), method="decay") as patch:
            run(small_wan, 9)
        assert patch.report().corrected_calls == 4

    def test_a_method_that_requires_settings_is_not_patched_by_name(self, small_wan):
        with pytest.raises(ProfileError) as caught:
            freeloc.patch(small_wan, make_profile(), method="decay")
        assert str(caught.value) == (
            "method 'decay' requires settings:\n  settings.factor: Field required\ngive them in a profile: "
            '"schema_version": 2, "policies": {"NAME": {"method": "decay", "settings": {...}}}, and "layers": '
            '{"NAME": [...]}'
        )
        freeloc.patch(small_wan, make_profile(), method="window").remove()

    def test_a_profile_with_invalid_policies_is_not_patched(self, small_wan):
        profile = Profile.model_validate(content(policies={}, layers={"vrpr": [0, 1, 2], "decay": [3]}))
        with pytest.raises(ProfileError, match="method 'decay' requires settings"):
            freeloc.patch(small_wan, profile)
        assert not small_wan._forward_pre_hooks


class TestFiles:
    def test_version_2_survives_the_disk(self, tmp_path):
        profile = loaded(heads={"2": {"soft": [1], "riflex": [0]}})
        profile.save(tmp_path / "mine.json")
        assert json.loads((tmp_path / "mine.json").read_text())["policies"] == DEFINED
        assert freeloc.load_profile(tmp_path / "mine.json") == profile

    def test_settings_that_are_null_survive_the_disk(self, tmp_path, monkeypatch):
        class Bound(BaseModel):
            bound: int | None = 3

        method = Method("bound", lambda profile, layer, frames, own: FramePlan.identity(frames), settings=Bound)
        monkeypatch.setitem(registry().methods.owners, "bound", [("a package", method)])
        profile = loaded(policies={"no": {"method": "bound", "settings": {"bound": None}}}, layers={"no": [0, 1, 2, 3]})
        profile.save(tmp_path / "mine.json")
        again = freeloc.load_profile(tmp_path / "mine.json")
        assert again == profile
        assert policies.resolve_policy(again, "no").settings == Bound(bound=None)

    @pytest.mark.parametrize(
        ("changes", "version"),
        [
            ({"policies": {}, "layers": {"vrpr": [0, 1], "none": [2, 3]}}, 1),
            ({"policies": {}, "layers": {"vrpr": [0, 1], "riflex": [2, 3]}}, 2),
            ({"policies": {}, "layers": {"vrpr": [0, 1, 2, 3]}, "heads": {"0": {"riflex": [1]}}}, 2),
            ({"policies": {"tsa": {"method": "tsa"}}, "layers": {"tsa": [0, 1, 2, 3]}}, 2),
        ],
    )
    def test_the_oldest_sufficient_version_is_written(self, tmp_path, changes, version):
        profile = loaded(**changes)
        profile.save(tmp_path / "mine.json")
        written = json.loads((tmp_path / "mine.json").read_text())
        assert written["schema_version"] == version
        assert ("policies" in written) == bool(changes["policies"])
        again = freeloc.load_profile(tmp_path / "mine.json")
        assert again == profile.model_copy(update={"schema_version": version})

    def test_a_choice_keeps_only_the_policies_it_uses(self):
        chosen = with_choice(loaded(), {"soft": [0, 1], "none": [2, 3], "wide": []}, {"3": {"riflex": [0]}})
        assert list(chosen.policies) == ["soft"]
        assert (chosen.schema_version, chosen.head_policies(3)) == (2, ["riflex", "none"])
        plain = with_choice(loaded(), {"vrpr": [0, 1, 2, 3]}, adapter="other")
        assert (plain.schema_version, plain.policies, plain.heads, plain.adapter) == (1, {}, {}, "other")
        with pytest.raises(ProfileError, match=r"the choice is not a profile:\n.*no method is named 'rifle'; did you"):
            with_choice(loaded(), {"rifle": [0, 1, 2, 3]})

    @pytest.mark.parametrize("policy", ["riflex", "window"])
    def test_a_default_profile_of_any_method(self, small_wan, policy):
        profile = freeloc.default_profile(small_wan, policy, trained_latent_frames=4)
        assert (profile.schema_version, profile.policy(3)) == (2, policy)

    def test_used_policies_are_in_a_stable_order(self):
        profile = loaded(heads={"0": {"window": [0], "none": [1]}})
        assert profile.used_policies == ["none", "vrpr", "wide", "riflex", "soft", "window"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layers": {"riflex": [0, 1, 2, 3]}, "policies": {}}, "found 'riflex'; other methods and policies need "),
            (
                {"heads": {"0": {"clip": [1]}}, "layers": {"vrpr": [0, 1, 2, 3]}, "policies": {}},
                "heads: Value error, Input should be 'none', 'vrpr', 'tsa' or 'vrpr+tsa', found 'clip'; other methods",
            ),
            ({}, 'policies: Value error, policies need "schema_version": 2, found 1'),
        ],
    )
    def test_the_error_for_a_feature_of_version_2_names_the_version_to_write(self, changes, message):
        lines = refused(**({"schema_version": 1} | changes))
        assert message in lines
        assert '"schema_version": 2' in lines

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"policies": DEFINED | {"wide": {"method": "tsaa"}}},
                "  policies.wide.method: no method is named 'tsaa'; did you mean tsa",
            ),
            (
                {"layers": POLICY_CHOICE | {"rifle": [1], "riflex": []}},
                "  layers or heads: expected the name of a policy or a method: no method is named 'rifle'; did you "
                "mean riflex",
            ),
            ({"layers": {"wid": [0], "wide": [1], "soft": [2, 3]}}, "a method, or the policy 'wide': no method is na"),
            (
                {"policies": DEFINED | {"soft": {"method": "decay", "settings": {"factor": 2}}}},
                "  policies.soft.settings.factor: Input should be less than or equal to 1, found 2",
            ),
            (
                {"policies": DEFINED | {"soft": {"method": "decay", "settings": {"faktor": 1}}}},
                "  policies.soft.settings: expected one of factor, tiers, found 'faktor'",
            ),
            ({"policies": DEFINED | {"soft": {"method": "decay"}}}, "  policies.soft.settings.factor: Field required"),
            (
                {"policies": DEFINED | {"soft": {"method": "clip", "settings": {"a": 1}}}},
                "  policies.soft.settings: expected none: the method 'clip' has no settings, found 'a'",
            ),
            (
                {"policies": DEFINED | {"soft": {"method": "tsa", "settings": {"dense_frames": 9}}}},
                "  policies.soft.settings: Value error, dense_frames <= striped_frames, found 9 and 4",
            ),
            (
                {"layers": {"decay": [0, 1, 2, 3]}, "policies": {}},
                "  layers or heads: method 'decay' requires settings:\n    settings.factor: Field required\n  give ",
            ),
            (
                {"policies": {"clip": {"method": "tsa"}}, "layers": {"clip": [0, 1, 2, 3]}},
                "  policies.clip: expected a name that no other method has, found that of the method 'clip' for 'tsa': "
                "rename the policy",
            ),
            (
                {"policies": DEFINED | {"more": {"method": "clip"}}},
                "  profile: Value error, policies: each the policy of a layer or head, found 'more' of none: remove it",
            ),
            ({"policies": DEFINED | {"soft": {"method": 3}}}, "  policies.soft.method: Input should be a valid string"),
            ({"policies": DEFINED | {"soft": {"settings": {}}}}, "  policies.soft.method: Field required"),
            ({"policies": DEFINED | {"": {"method": "clip"}}}, "at least 1 character"),
            ({"policies": {f"p{n}": {"method": "clip"} for n in range(101)}}, "should have at most 100 items"),
            (
                {"policies": DEFINED | {"soft": {"method": "decay", "settings": {"factor": float("nan")}}}},
                "  policies.soft.settings: Value error, Out of range float values are not JSON compliant",
            ),
        ],
    )
    def test_errors_name_the_field(self, changes, message):
        assert message in refused(**changes)

    def test_all_errors_are_listed_up_to_ten_lines(self):
        wrong = {f"p{number}": {"method": f"no-{number}"} for number in range(14)}
        lines = refused(policies=wrong, layers={"p0": [0, 1, 2, 3]}, heads={"0": {name: [] for name in wrong}})
        assert "found 'p1' of none" in lines
        heads = {"0": {f"p{number}": [number] for number in range(1, 14)}}
        facts = make_profile().model.model_dump() | {"heads": 20}
        lines = refused(policies=wrong, layers={"p0": [0, 1, 2, 3]}, heads=heads, model=facts).split("\n")
        assert [line.partition(":")[0] for line in lines[:2]] == ["  policies.p0.method", "  policies.p1.method"]
        assert (len(lines), lines[-1]) == (11, "  and 4 more")

    def test_a_method_of_two_packages(self, monkeypatch):
        monkeypatch.setitem(registry().methods.owners, "decay", [("one", None), ("two", None)])
        assert "policies.soft.method: method 'decay' is registered by one and two: uninstall one" in refused()

    def test_a_policy_of_the_same_name_as_its_method_is_that_method_with_settings(self):
        profile = loaded(policies={"tsa": {"method": "tsa", "settings": {"stripe": 0.5}}}, layers={"tsa": [0, 1, 2, 3]})
        assert frame_plan(profile, 0, 9).stripe == 0.5

    def test_a_profile_that_came_from_no_file_is_checked_when_it_is_used(self):
        profile = Profile.model_validate(content(policies={}, layers={"nothing": [0, 1, 2, 3]}))
        with pytest.raises(ProfileError, match="expected the name of a policy or a method: no method is named 'nothi"):
            frame_plan(profile, 0, 9)

    def test_the_four_policies_need_no_version(self):
        assert [make_profile({policy: [0]}).schema_version for policy in POLICIES] == [1, 1, 1, 1]


class TestNoise:
    NEEDED = (
        "the initial noise of 'freenoise' is prepared in prepare_latents of a pipeline: expected such a pipeline, or "
        "noise_prepared=True, found WanTransformer3DModel, which has no prepare_latents. To prepare it yourself, where "
        "the latents are made, from latents (batch, channels, frames, height, width), before they are packed:\n"
        "    from freeloc.plans.baselines import reschedule_noise; latents = reschedule_noise(latents, 4, generator)\n"
        "    freeloc.patch(..., noise_prepared=True)"
    )

    def test_freenoise_is_refused_where_its_noise_is_not_prepared(self, small_wan):
        with pytest.raises(PatchError, match=f"^{re.escape(self.NEEDED)}$"):
            freeloc.patch(small_wan, make_profile(), method="freenoise")
        assert not small_wan._forward_pre_hooks
        freeloc.patch(small_wan, make_profile(), method="freenoise", noise_prepared=True).remove()

    @pytest.mark.parametrize(
        "changes",
        [
            {"policies": {}, "layers": {"freenoise": [0], "vrpr": [1, 2, 3]}},
            {"policies": {"mine": {"method": "freenoise"}}, "layers": {"vrpr": [0, 1, 2], "mine": [3]}},
            {"policies": {}, "layers": {"vrpr": [0, 1, 2, 3]}, "heads": {"2": {"freenoise": [1]}}},
        ],
    )
    def test_a_profile_that_gives_it_to_some_layer_or_head_is_refused_too(self, small_wan, changes):
        profile = loaded(**changes)
        with pytest.raises(PatchError, match=f"^{re.escape(self.NEEDED)}$"):
            freeloc.patch(small_wan, profile)
        freeloc.patch(small_wan, profile, noise_prepared=True).remove()
        freeloc.patch(small_wan, profile, method="vrpr").remove()  # which replaces the choice of layers

    def test_noise_without_an_importable_name(self, small_wan):
        method = Method("mine", lambda *_: None, noise=lambda latents, trained, generator: latents)
        with pytest.raises(PatchError, match=r"packed:\n    latents = method\.noise\(latents, 4, generator\)\n"):
            freeloc.patch(small_wan, make_profile(), method=method)
        assert noise_method(make_profile(), method) is method

    @pytest.mark.parametrize("method", [None, "vrpr", lambda profile, layer, frames: FramePlan.identity(frames)])
    def test_other_methods_need_no_noise(self, method):
        assert noise_method(make_profile(), method) is None

    def test_methods_used(self):
        assert [method.name for method in methods_used(loaded(heads={"0": {"window": [1]}}))] == [
            "vrpr",
            "tsa",
            "riflex",
            "decay",
            "window",
        ]
