"""The settings that the bench compares: every method by name, and good, random and bad choices of layers."""

import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.plans.baselines import BASELINES
from freeloc.plans.windows import LVSA
from freeloc.probing import Sensitivity
from freeloc.profile.files import load_profile, with_choice
from freeloc.profile.schema import POLICIES, Policy, Profile
from freeloc.registry import registry
from freeloc.tiny.losses import BASELINE
from freeloc.tiny.setting import NOISE_OF, Setting

WITHOUT_VRPR, WITH_TSA = "VRPR on all but layer {}", "VRPR, and TSA on layer {}"
"""Names of settings with another policy on one layer."""

EVERYWHERE = ("tsa", "vrpr", "vrpr+tsa", "balanced")
"""Methods on every layer, whose settings are named "... everywhere"."""

NOISY = ("direct", "vrpr everywhere", "balanced everywhere", "layer-wise", "tuned")
"""Settings that are also measured from the initial noise of FreeNoise."""

LAYER_CHOICE = Path(__file__).parent / "layer_choice.json"
"""A profile of the tiny Wan with a policy for each layer by the paper's recipe, chosen by ``freeloc.tiny.probes``."""

HEAD_CHOICE = Path(__file__).parent / "head_choice.json"
"""A profile of the tiny Wan with a policy for each head, chosen by ``freeloc.tiny.probes heads``."""


def with_layers(profile: Profile, policies: list[Policy]) -> Profile:
    """The profile with these policies, one for each layer in order.

    >>> changed = with_layers(load_profile("tiny-wan"), ["vrpr", "tsa"] * 4)
    >>> changed.layers
    {'vrpr': [0, 2, 4, 6], 'tsa': [1, 3, 5, 7]}
    """
    layers: dict[Policy, list[int]] = {}
    for layer, policy in enumerate(policies):
        layers.setdefault(policy, []).append(layer)
    return with_choice(profile, layers, profile.heads)


def policies_of(profile: Profile) -> list[Policy]:
    """The policy of each layer."""
    return [profile.policy(layer) for layer in range(profile.model.layers)]


def shuffled(profile: Profile, seed: int) -> Profile:
    """The same policies on equally many layers, which are chosen at random."""
    policies = policies_of(profile)
    random.Random(seed).shuffle(policies)
    return with_layers(profile, policies)


def measured_losses(found: Sensitivity) -> dict[Policy, Tensor]:
    """Denoising loss (layers, clips) by the policy of one layer while the others have VRPR."""
    losses = found.table("loss.value").at(rest="vrpr")
    return {policy: losses.at(policies=policy).over("layers", "clips").values for policy in POLICIES}


def wrong(profile: Profile, losses: dict[Policy, Tensor]) -> Profile:
    """The same policies on equally many layers, but on those where the loss is highest: see `measured_losses`.

    Policies are assigned from the rarest to the most common, each to the remaining layers where it is worst.

    >>> from torch import tensor, zeros
    >>> losses = {"vrpr": zeros(8, 1), "tsa": tensor([[3.0], [9], [1], [0], [0], [0], [0], [8]])}
    >>> wrong(with_layers(load_profile("tiny-wan"), ["vrpr"] * 6 + ["tsa"] * 2), losses).layers["tsa"]
    [1, 7]
    """
    counts = {policy: len(layers) for policy, layers in profile.layers.items() if layers}
    remaining = list(range(profile.model.layers))
    chosen: dict[int, Policy] = {}
    for policy in sorted(counts, key=lambda policy: counts[policy]):
        rise = (losses[policy] - losses["vrpr"]).mean(dim=1).tolist()
        worst = sorted(remaining, key=rise.__getitem__, reverse=True)[: counts[policy]]
        chosen |= dict.fromkeys(worst, policy)
        remaining = [layer for layer in remaining if layer not in chosen]
    return with_layers(profile, [chosen[layer] for layer in range(profile.model.layers)])


def single_layer_settings(model: str = "tiny-wan") -> dict[str, Setting]:
    """Settings with another policy on one layer, by name. In whole videos they show what probes predict.

    >>> setting = single_layer_settings()["VRPR on all but layer 3"]
    >>> setting.profile.layers
    {'vrpr': [0, 1, 2, 4, 5, 6, 7], 'none': [3]}
    """
    chosen = load_profile(model)
    layers = range(chosen.model.layers)
    kinds: dict[str, Policy] = {WITHOUT_VRPR: "none", WITH_TSA: "vrpr+tsa"}
    settings = {}
    for name, own in kinds.items():
        for layer in layers:
            policies: list[Policy] = [own if other == layer else "vrpr" for other in layers]
            settings[name.format(layer)] = Setting(name.format(layer), with_layers(chosen, policies))
    return settings


def all_settings(model: str = "tiny-wan") -> dict[str, Setting]:
    """Every setting of the bench, by name. Of settings with the same plans and noise, only the first is included."""
    different: dict[str, Setting] = {}
    for setting in _every_setting(model).values():
        different.setdefault(setting.fingerprint, setting)
    return {setting.name: setting for setting in different.values()}


def _every_setting(model: str) -> dict[str, Setting]:
    """Every setting by name, also those that are the same under another name."""
    own = load_profile(model)
    settings = [Setting(method.name, own, method) for method in [*BASELINES, LVSA]]
    settings += [Setting(f"{name} everywhere", own, registry().methods.get(name)) for name in EVERYWHERE]
    settings.append(Setting("tuned", own))
    if model == "tiny-wan":
        settings += _choices_of_layers()
    noise = registry().methods.get("freenoise")
    settings += [setting.with_noise_of(noise) for setting in settings if setting.name in NOISY]
    return {setting.name: setting for setting in settings}


def _choices_of_layers() -> list[Setting]:
    """The paper's recipe on the tiny Wan, the same for each head, and the same policies on other layers."""
    chosen, measured = load_profile(LAYER_CHOICE), Sensitivity.load(LAYER_CHOICE.with_suffix(".safetensors"))
    return [
        Setting("layer-wise", chosen),
        Setting("head-wise", load_profile(HEAD_CHOICE)),
        *(Setting(f"random layers {seed}", shuffled(chosen, seed)) for seed in (1, 2, 3)),
        Setting("wrong layers", wrong(chosen, measured_losses(measured))),
    ]


def setting_of(name: str, model: str = "tiny-wan") -> Setting:
    """A setting by name: one of `all_settings`, a method's name, or a profile in a form that `load_profile` supports.

    Any of them may be followed by ``, noise of METHOD``.

    >>> setting_of("riflex").name, setting_of("profiles/tiny-wan.json").name, setting_of("vrpr").name
    ('riflex', 'tiny-wan', 'vrpr everywhere')
    >>> setting_of("layer-wise, noise of freenoise").noise.name
    'freenoise'

    Raises:
        FreelocError: if there is none, or the profile is for another model.
    """
    base, separator, noisy = name.partition(NOISE_OF)
    if separator:
        return setting_of(base, model).with_noise_of(registry().methods.get(noisy))
    known, own = _every_setting(model), load_profile(model)
    for usual in (name, f"{name} everywhere"):
        if usual in known:
            return known[usual]
    if not ("/" in name or name.endswith(".json") or name in registry().profiles.owners):
        method = registry().methods.get(name, way_out=f"; or give a profile of {model}")
        return Setting(name, own, method)
    profile = load_profile(name)
    if (profile.model.layers, profile.model.heads) != (own.model.layers, own.model.heads):
        raise FreelocError(
            f"expected a profile of {model}, {own.model.layers} layers of {own.model.heads} heads, found "
            f"{profile.model.layers} of {profile.model.heads} in {name}"
        )
    return Setting(Path(name).stem, profile)


def loss_settings(names: Sequence[str], also: Sequence[str], model: str) -> list[Setting]:
    """The settings of `freeloc bench --losses`: those of these names, by default all with different plans, and others.

    The one that they are compared with is always there, and comes first.
    """
    usual = [] if names else [setting for setting in all_settings(model).values() if setting.noise is None]
    wanted = [setting_of(BASELINE, model), *(setting_of(name, model) for name in names), *usual]
    wanted += [setting_of(name, model) for name in also]
    return list({setting.name: setting for setting in wanted}.values())
