"""The settings that the bench compares: every method by name, and good, random and bad choices of layers."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.plans.baselines import BASELINES
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Method
from freeloc.probing import Sensitivity
from freeloc.profile.files import load_profile, measurements_path, with_choice
from freeloc.profile.planning import methods_used, resolve_method
from freeloc.profile.schema import POLICIES, Policy, Profile
from freeloc.registry import registry
from freeloc.tiny.model import long_frames

WITHOUT_VRPR, WITH_TSA = "VRPR on all but layer {}", "VRPR, and TSA on layer {}"
"""Names of settings with another policy on one layer."""

HEAD_CHOICE = Path(__file__).parent / "head_choice.json"
"""A profile of the tiny model with a policy for each head, chosen by ``freeloc.tiny.probes heads``."""


@dataclass(frozen=True)
class Setting:
    """One way to generate long videos: a profile, or a method in place of its choice of layers."""

    name: str
    profile: Profile
    method: Method | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the plans of all layers at 2, 4 and 8 times the trained length, and the noise function's name."""
        digest = hashlib.sha256()
        _, plan_of = resolve_method(self.method)
        for times in (2, 4, 8):
            for layer in range(self.profile.model.layers):
                plans = plan_of(self.profile, layer, long_frames(times))
                for plan in [plans] if isinstance(plans, FramePlan) else plans:
                    optional = [table for table in (plan.decay, plan.bias) if table is not None]
                    for table in (plan.positions, plan.visibility, *optional):
                        digest.update(table.numpy().tobytes())
                    digest.update(repr((plan.stripe, plan.logit_scale, plan.frequencies)).encode())
        noise = self.noise
        return f"{digest.hexdigest()[:16]} {noise.__name__ if noise else ''}".strip()

    @property
    def noise(self) -> Callable[[Tensor, int, torch.Generator], Tensor] | None:
        """The function that changes the initial noise, if there is one.

        Raises:
            FreelocError: if methods of different layers require different noise.
        """
        own = {method.noise: method.name for method in methods_used(self.method or self.profile) if method.noise}
        if len(own) > 1:
            raise FreelocError(
                f"{self.name}: expected one method that changes the initial noise, found {' and '.join(own.values())}"
            )
        return next(iter(own), None)


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


def single_layer_settings() -> dict[str, Setting]:
    """Settings with another policy on one layer, by name. In whole videos they show what probes predict.

    >>> setting = single_layer_settings()["VRPR on all but layer 3"]
    >>> setting.profile.layers
    {'vrpr': [0, 1, 2, 4, 5, 6, 7], 'none': [3]}
    """
    chosen = load_profile("tiny-wan")
    layers = range(chosen.model.layers)
    kinds: dict[str, Policy] = {WITHOUT_VRPR: "none", WITH_TSA: "vrpr+tsa"}
    settings = {}
    for name, own in kinds.items():
        for layer in layers:
            policies: list[Policy] = [own if other == layer else "vrpr" for other in layers]
            settings[name.format(layer)] = Setting(name.format(layer), with_layers(chosen, policies))
    return settings


def all_settings() -> dict[str, Setting]:
    """Every setting of the bench, by name. Of settings with the same plans and noise, only the first is included."""
    chosen = load_profile("tiny-wan")
    settings = [Setting(method.name, chosen, method) for method in BASELINES]
    settings += [
        Setting(f"{name} everywhere", chosen, registry().methods.get(name)) for name in ("tsa", "vrpr", "vrpr+tsa")
    ]
    settings.append(Setting("layer-wise", chosen))
    if HEAD_CHOICE.exists():
        settings.append(Setting("head-wise", load_profile(HEAD_CHOICE)))
    settings += [Setting(f"random layers {seed}", shuffled(chosen, seed)) for seed in (1, 2, 3)]
    measured = measurements_path("tiny-wan")
    if measured:
        settings.append(Setting("wrong layers", wrong(chosen, measured_losses(Sensitivity.load(measured)))))
    different: dict[str, Setting] = {}
    for setting in settings:
        different.setdefault(setting.fingerprint, setting)
    return {setting.name: setting for setting in different.values()}


def setting_of(name: str) -> Setting:
    """The setting of a method's name, or of a profile of the tiny model in a form that `load_profile` supports.

    >>> setting_of("riflex").name, setting_of("profiles/tiny-wan.json").name
    ('riflex', 'tiny-wan')

    Raises:
        FreelocError: if there is none, or the profile is for another model.
    """
    own = load_profile("tiny-wan")
    if not ("/" in name or name.endswith(".json") or name in registry().profiles.owners):
        method = registry().methods.get(name, way_out="; or give a profile of the tiny model")
        return Setting(name, own, method)
    profile = load_profile(name)
    if (profile.model.layers, profile.model.heads) != (own.model.layers, own.model.heads):
        raise FreelocError(
            f"expected a profile of the tiny model, {own.model.layers} layers of {own.model.heads} heads, found "
            f"{profile.model.layers} of {profile.model.heads} in {name}"
        )
    return Setting(Path(name).stem, profile)
