"""Plugins, through real packages that pip installs: what they add, and how each failure is reported."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module, metadata

import pytest
from conftest import SMALL, make_wan
from plugins import DISTRIBUTIONS, FAILING, PYPROJECT, plugin
from torch import nn

import freeloc
from freeloc.cli import main
from freeloc.discovery import transformers_of
from freeloc.markers import GROUP
from freeloc.registry import Registry, Shelf, registry


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder into which pip has installed all of DISTRIBUTIONS."""
    target = tmp_path_factory.mktemp("installed")
    sources = []
    for name, files in DISTRIBUTIONS.items():
        source = tmp_path_factory.mktemp(name)
        sources.append(str(source))
        for path, text in files.items():
            (source / path).parent.mkdir(exist_ok=True)
            (source / path).write_text(text)
        packages = sorted({path.split("/")[0] for path in files})
        points = "\n".join(f'{package} = "{package}"' for package in packages)
        text = PYPROJECT.replace("NAME", name).replace("POINTS", points).replace("PACKAGES", json.dumps(packages))
        (source / "pyproject.toml").write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps"]
    done = subprocess.run([*pip, "--target", str(target), *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def plugged(installed, monkeypatch):
    """The registry of this process with all of them installed."""
    monkeypatch.syspath_prepend(installed)
    registry.cache_clear()
    yield registry()
    registry.cache_clear()


@pytest.fixture
def entry_points(installed, monkeypatch):
    """The installed entry points by name."""
    monkeypatch.syspath_prepend(installed)
    return {
        point.name: point for found in metadata.distributions(path=[str(installed)]) for point in found.entry_points
    }


def acme_model(name):
    return make_wan(cls=getattr(import_module("acme.models"), name))


class TestLookUps:
    @pytest.fixture
    def shelf(self):
        shelf = Shelf("profile")
        shelf.add("wan2.1", "freeloc", 21)
        shelf.add("wan2.2", "freeloc", 22)
        shelf.add("cog", "one", 1)
        shelf.add("cog", "two", 2)
        return shelf

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("wan2.11", "no profile is named 'wan2.11'; did you mean wan2.1 or wan2.2? known: cog, wan2.1, wan2.2"),
            ("cogg", "no profile is named 'cogg'; did you mean cog? known: cog, wan2.1, wan2.2"),
            ("xyzxyz", "no profile is named 'xyzxyz'; known: cog, wan2.1, wan2.2"),
            ("cog", "profile 'cog' is registered by one and two: uninstall one of them, or rename it"),
        ],
    )
    def test_missing_and_duplicate_names_are_refused(self, shelf, name, message):
        with pytest.raises(freeloc.errors.RegistryError, match=f"^{re.escape(message)}$"):
            shelf.get(name)

    def test_an_empty_shelf_says_what_to_do(self):
        with pytest.raises(freeloc.errors.RegistryError, match=r"^no adapter is named 'wan'; known: none; write one$"):
            Shelf("adapter").get("wan", way_out="; write one")

    def test_only_names_of_one_distribution_are_listed(self, shelf):
        assert shelf.things() == [("wan2.1", "freeloc", 21), ("wan2.2", "freeloc", 22)]
        assert shelf.conflicts() == ["profile 'cog' is registered by one and two: uninstall one of them, or rename it"]
        assert shelf.get("wan2.2") == 22

    def test_the_built_in_plugins_load_through_entry_points(self):
        ours = [point for point in metadata.entry_points(group=GROUP) if point.dist.name == "freeloc"]
        assert {point.value for point in ours} == {
            "freeloc_adapters",
            "freeloc_profiles",
            "freeloc.attention.backends",
            "freeloc.plans.policies",
            "freeloc.metrics.scorers",
            "freeloc.probing.depths",
            "freeloc.tuning.depth",
        }
        alone = Registry(ours)
        assert "wan" in alone.adapters.owners
        assert "wan2.1" in alone.profiles.owners
        assert "sharpness" in alone.scorers.owners
        assert "vrpr" in alone.methods.owners
        assert "loss" in alone.depths.owners
        assert (alone.failures, alone.adapters.conflicts(), alone.profiles.conflicts()) == ([], [], [])

    def test_without_entry_points_the_registry_is_empty(self):
        assert Registry([]).adapters.things() == []
        assert Registry([]).failures == []


class TestInstalledPlugins:
    @pytest.mark.slow
    def test_a_fresh_process_finds_them(self, installed):
        code = """
import json, sys, freeloc
from freeloc.registry import registry
names = [adapter.name for adapter in freeloc.discovery.adapters()]
profile = freeloc.load_profile("acme").model.name
failed = [failure.plugin for failure in registry().failures]
print(json.dumps([names, profile, failed, "acme.models" in sys.modules, "diffusers" in sys.modules]))
"""
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        names, profile, failed, loaded_models, loaded_diffusers = json.loads(done.stdout)
        assert {"acme", "left", "right", "wan"} <= set(names)
        assert "twin" not in names
        assert profile == "Acme"
        assert set(failed) >= FAILING.keys()
        assert not loaded_models
        assert not loaded_diffusers

    def test_a_plugin_adds_an_adapter_and_a_profile(self, plugged):
        assert ("acme", "acme-video") in [(name, distribution) for name, distribution, _ in plugged.adapters.things()]
        model = acme_model("Acme")
        assert freeloc.discovery.find_adapter(model).name == "acme"  # the adapter of the class, not that of its base
        with freeloc.patch(model, "acme") as patch:
            assert len(patch.report().layers) == SMALL["num_layers"]

    def test_a_plugin_adds_a_method(self, plugged, run):
        with freeloc.patch(model := acme_model("Acme"), "acme", method="acme-blindfold") as patch:
            run(model, 8)
        assert {(line.method, line.attended) for line in patch.report().layers} == {("acme-blindfold", 1 / 8)}

    def test_built_in_plugins_work_beside_failing_ones(self, plugged, small_wan):
        assert freeloc.discovery.find_adapter(small_wan).name == "wan"
        assert freeloc.load_profile("wan2.1").model.layers == 30

    def test_the_command_line_lists_what_works_and_reports_what_does_not(self, plugged, capsys):
        assert main(["adapters"]) == 1
        printed = capsys.readouterr()
        assert "acme                 acme-video" in printed.out
        assert "wan                  freeloc" in printed.out
        assert "plugin 'raises' of clumsy could not be loaded: RuntimeError: no licence key" in printed.err
        assert "adapter 'twin' is registered by twin-" in printed.err
        assert main(["profiles"]) == 1
        assert "profile 'lost' of lost: cannot read the profile" in capsys.readouterr().err

    def test_an_adapter_from_two_distributions_is_refused_with_both_names(self, plugged):
        message = "^adapter 'twin' is registered by twin-(one and twin-two|two and twin-one): uninstall one of them"
        with pytest.raises(freeloc.errors.RegistryError, match=message):
            freeloc.discovery.find_adapter(acme_model("Twin"))
        assert "twin" not in [adapter.name for adapter in freeloc.discovery.adapters()]
        assert any(re.match(message, conflict) for conflict in plugged.adapters.conflicts())

    def test_a_profile_from_two_distributions_is_refused_with_both_names(self, plugged):
        message = "^profile 'twin' is registered by twin-(one and twin-two|two and twin-one): uninstall one of them"
        with pytest.raises(freeloc.errors.ProfileError, match=message):
            freeloc.load_profile("twin")
        assert "twin" not in [name for name, _, _ in plugged.profiles.things()]

    def test_two_adapters_for_one_class_are_refused_unless_one_is_passed(self, plugged):
        model = acme_model("Contested")
        with pytest.raises(
            freeloc.errors.RegistryError,
            match=r"^Contested is described by the adapters \['left', 'right'\]: pass adapter= ",
        ):
            freeloc.discovery.find_adapter(model)
        chosen = plugged.adapters.get("left")
        assert transformers_of(model, chosen) == [(model, chosen)]

    @pytest.mark.parametrize("name", FAILING)
    def test_a_plugin_that_fails_is_named_with_its_distribution_and_the_cause(self, plugged, name):
        (message,) = [str(failure) for failure in plugged.failures if failure.plugin == name]
        assert message.startswith(f"plugin '{name}' of clumsy could not be loaded: {FAILING[name][1]}")

    def test_a_plugin_with_one_wrong_part_adds_nothing(self, plugged):
        assert "half" not in plugged.adapters.owners
        assert "half" not in plugged.profiles.owners

    def test_the_error_for_an_unknown_model_lists_plugin_failures(self, plugged):
        cause = "; plugin 'raises' of clumsy could not be loaded: RuntimeError: no licence key"
        with pytest.raises(
            freeloc.errors.AdapterError, match=f"Installed adapters: .*{cause}.*docs/write-an-adapter"
        ) as caught:
            freeloc.discovery.find_adapter(nn.Linear(2, 2))
        assert all(f"plugin '{name}' of clumsy" in str(caught.value) for name in FAILING)

    def test_loading_a_profile_whose_file_is_missing_is_an_error(self, plugged):
        with pytest.raises(
            freeloc.errors.ProfileError, match=r"^cannot read the profile .*lost\.json: No such file or directory$"
        ):
            freeloc.load_profile("lost")

    def test_a_profile_whose_file_is_missing_does_not_stop_the_others(self, plugged):
        assert freeloc.default_profile(acme_model("Acme")).model.trained_latent_frames == 4

    @pytest.mark.parametrize("name", ["no_return", "not_marked"])
    def test_a_plugin_that_adds_nothing_is_a_failure(self, plugged, name):
        assert name in [failure.plugin for failure in plugged.failures]

    def test_one_path_instead_of_a_list_is_a_failure(self, entry_points):
        alone = Registry([entry_points["one_path_as_text"]])
        assert list(alone.profiles.owners) == []
        assert [failure.plugin for failure in alone.failures] == ["one_path_as_text"]

    @pytest.mark.parametrize(
        ("name", "hook"), [("gives_one", "freeloc_adapters"), ("gives_numbers", "freeloc_profiles")]
    )
    def test_a_wrong_return_value_is_reported_with_the_hook(self, entry_points, name, hook):
        (failure,) = Registry([entry_points[name]]).failures
        assert f"{hook} must return" in failure.cause

    def test_a_plugin_that_exits_does_not_end_the_process(self, tmp_path, monkeypatch):
        (tmp_path / "a_script_of_mine.py").write_text("raise SystemExit(3)")
        monkeypatch.syspath_prepend(tmp_path)
        (failure,) = Registry([metadata.EntryPoint("script", "a_script_of_mine", GROUP)]).failures
        assert str(failure) == "plugin 'script' of an unknown distribution could not be loaded: SystemExit: 3"

    @pytest.mark.parametrize("body", ["yield wan.ORIGINAL", "return iter([wan.ORIGINAL])"])
    def test_a_hook_may_return_an_iterator(self, tmp_path, monkeypatch, body):
        code = plugin().replace("return []", body, 1)
        module = f"one_by_one_{body.split()[0]}"
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        alone = Registry([metadata.EntryPoint("one_by_one", module, GROUP)])
        assert (alone.failures, list(alone.adapters.owners)) == ([], ["wan-original"])

    def test_one_module_under_two_names_is_loaded_once(self):
        twice = Registry([metadata.EntryPoint(name, "freeloc_adapters", GROUP) for name in ("first", "second")])
        assert twice.adapters.conflicts() == []
        assert [failure.plugin for failure in twice.failures] == ["second"]
        assert "already registered under a different name" in twice.failures[0].cause

    def test_an_entry_point_without_a_distribution_is_named_so(self):
        (failure,) = Registry([metadata.EntryPoint("gone", "a_missing_package", GROUP)]).failures
        assert str(failure).startswith(
            "plugin 'gone' of an unknown distribution could not be loaded: ModuleNotFoundError"
        )
