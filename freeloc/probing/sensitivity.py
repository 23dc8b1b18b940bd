"""Sensitivity: the measurements of a probe, with summaries, a choice of policies, and a profile from it."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.depths.base import Depth
from freeloc.probing.depths.lookup import find_depth, installed_depths
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.statistics import rank_correlation
from freeloc.probing.store import Measurements
from freeloc.profile.files import digest, validated
from freeloc.profile.schema import POLICIES, Profile, version_for
from freeloc.untrusted import brief, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sensitivity(Measurements):
    """The measurements of a probe, and the results from them. `freeloc.probe` returns one, and `load` reads one.

    Printing it shows a line per layer: how sensitive it is, and the policy that `to_profile` would choose.
    """

    def __str__(self) -> str:
        return self.text()

    def text(self, profile: Profile | None = None) -> str:
        """A line per layer: how sensitive it is ± standard error, and its policy, or why there is none. Never raises.

        Args:
            profile: the profile whose policies are shown; by default those that `to_profile` would choose.
        """
        facts = self.facts
        title = f"{printable(facts.profile.model.name)}, {' and '.join(map(str, facts.latent_frames))} latent frames"
        try:
            depth = self._depth(None)
            columns = {name: _numbers(*pair) for name, pair in depth.summarize(self).columns().items()}
        except Exception as error:  # a plugin's depth may fail in any way on the tables of a file
            return f"{title}\n{_why(error)}"
        below = []
        try:
            below += [remark] if (remark := depth.remark(self)) else []
            chosen = depth.choose(self, USUAL) if profile is None else _policies_of(profile)
        except Exception as error:  # the numbers are shown anyway
            chosen, below = [], [f"no policy: {_why(error)}"]
        widths = {name: max(10, len(printable(name)), *map(len, shown)) for name, shown in columns.items()}
        head = " ".join(f"{printable(name):>{width}}" for name, width in widths.items())
        lines = [f"{title}, depth {depth.name}", f"{'layer':>5} {head}  policy"]
        rows = itertools.zip_longest(zip(*columns.values(), strict=False), chosen, fillvalue=())
        for layer, (numbers, own) in enumerate(rows):
            text = " ".join(f"{value:>{width}}" for value, width in zip(numbers, widths.values(), strict=False))
            lines.append(f"{layer:5} {text}  {_shown(own)}")
        return "\n".join(lines + below)

    def summary(self, depth: str | Depth | None = None, heads: bool = False, scorer: str | None = None) -> Summary:
        """How sensitive each layer or head is to positions and to context: see `Summary`.

        Args:
            depth: name of a depth, or a `Depth` object, also one that is not registered; by default the measured depth
                with the highest rank.
            heads: True for each head, False for each layer.
            scorer: the scorer of depth ``video``; by default the first.

        Raises:
            ProbeError: if the depth was not measured, or is not installed.
        """
        return self._depth(depth).summarize(self, heads, Rule(scorer=scorer))

    def choose(self, depth: str | Depth | None = None, rule: Rule = USUAL, heads: bool = False) -> list[list[str]]:
        """The policy of each head of each layer; unless `heads`, all heads of a layer get the same one.

        Raises:
            ProbeError: for the same reasons as `to_profile`.
        """
        return self._depth(depth).choose(self, rule, heads)

    def picture(self, depth: str | Depth | None = None) -> "Figure":
        """A picture of the measurements of a depth.

        Raises:
            ProbeError: if the depth was not measured, or is not installed.
            FreelocError: if matplotlib is not installed.
        """
        return self._depth(depth).picture(self)

    def compare(self, other: "Sensitivity") -> dict[tuple[str, str], tuple[float, float]]:
        """Rank correlation over layers of the sensitivities to positions and to context, for each pair of depths.

        The keys are (depth of this, depth of `other`). 1 means the same order of layers, 0 no relation. Depths that are
        not installed are left out.

        Raises:
            ProbeError: if the models have different numbers of layers.
        """
        mine, its = self.facts.profile.model, other.facts.profile.model
        if mine.layers != its.layers:
            raise ProbeError(
                f"expected measurements of models with equally many layers, found {mine.layers} of {mine.name} and "
                f"{its.layers} of {its.name}"
            )
        first, second = ({depth.name: depth for depth in installed_depths(found.depths)} for found in (self, other))
        pairs = [(a, b) for a in self.depths if a in first for b in other.depths if b in second]
        found = {(a, b): (first[a].summarize(self), second[b].summarize(other)) for a, b in pairs}
        return {
            pair: (rank_correlation(a.position, b.position), rank_correlation(a.context, b.context))
            for pair, (a, b) in found.items()
        }

    def to_profile(
        self,
        path: str | Path | None = None,
        *,
        depth: str | Depth | None = None,
        rule: Rule | None = None,
        heads: bool = False,
    ) -> Profile:
        """Choose a policy for each layer by a stated rule.

        Args:
            path: path of a ``.json`` file for the profile. The measurements are written beside it.
            depth: the depth whose measurements decide; by default the measured depth with the highest rank.
            rule: a rule with other thresholds or policies.
            heads: whether to choose for each head.

        Raises:
            ProbeError: if the depth was not measured, not in every layer, or only once where a standard error decides;
                if it is not installed; if the path does not end in ``.json``.
            ProfileError: if not all layers were measured.
        """
        if path is not None and Path(path).suffix != ".json":  # it might be the file or the folder of the measurements
            raise ProbeError(f"expected a path that ends in .json for the profile, found {printable(str(path))}")
        found, rule = self._depth(depth), rule or USUAL
        content = self._content(found, rule, found.choose(self, rule, heads))
        if path is not None:
            measurements = Path(path).with_suffix(".safetensors")
            self.save(measurements)
            content["evidence"] = {"sha256": digest(measurements), "rule": f"{found.name}: {rule}"}
        profile = validated(content, "what was chosen")
        if path is not None:
            profile.save(path)
        return profile

    def _content(self, depth: Depth, rule: Rule, policies: list[list[str]]) -> dict[str, object]:
        """The content of the profile, without evidence."""
        usual = [Counter(of_heads).most_common(1)[0][0] for of_heads in policies]
        facts, count, samples = self.facts, depth.count_of(self), depth.samples
        layers = {
            policy: [layer for layer, own in enumerate(usual) if own == policy]
            for policy in dict.fromkeys([*POLICIES, *usual])
        }
        heads = _differing(policies, usual)
        content = facts.profile.model_dump()
        used = {*usual, *(policy for groups in heads.values() for policy in groups)}
        defined = {name: policy for name, policy in content["policies"].items() if name in used}
        return content | {
            "schema_version": version_for(defined, usual, heads),
            "policies": defined,
            "layers": {policy: places for policy, places in layers.items() if places},
            "heads": heads,
            "provenance": {
                "kind": "probed",
                "source": facts.command,
                "notes": f"Chosen by depth {depth.name} ({rule}) on {count} {samples if count > 1 else samples[:-1]}, "
                f"{' and '.join(map(str, facts.latent_frames))} latent frames. Weights {facts.fingerprint[:12]}.",
            },
            "evidence": None,
        }

    def _depth(self, name: str | Depth | None) -> Depth:
        """The depth of this name; by default the measured depth with the highest rank."""
        if isinstance(name, Depth):
            return name
        if name is None:
            installed = installed_depths(self.depths)
            if not installed:
                raise self._not_installed(self.depths)
            return installed[0]
        if self.tables_of(name) and not installed_depths([name]):
            raise self._not_installed([name])
        return find_depth(name)

    def _not_installed(self, depths: Sequence[str]) -> ProbeError:
        if not depths:
            return ProbeError("nothing was measured: found no table")
        tables = [name for depth in depths for name in self.tables_of(depth)]
        return ProbeError(
            f"expected measurements of an installed depth, found depth {brief(depths[0])} with the tables "
            f"{brief(tables)}: install the package that registers it (hook freeloc_depths)"
        )


def _numbers(values: Tensor, errors: Tensor) -> list[str]:
    """A number per layer, with its standard error if there is one; a mean over heads, without."""
    if values.ndim > 1:
        values, errors = values.flatten(1).mean(dim=1), torch.full_like(values.flatten(1)[:, 0], torch.nan)
    both = zip(values.tolist(), errors.tolist(), strict=True)
    return [f"{value:.4g} ± {error:.2g}" if math.isfinite(error) else f"{value:.4g}" for value, error in both]


def _policies_of(profile: Profile) -> list[list[str]]:
    return [[*profile.head_policies(layer)] for layer in range(profile.model.layers)]


def _why(error: Exception) -> str:
    """The message of an error; for an error of a plugin with its type."""
    return str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {printable(str(error))}"


def _differing(policies: list[list[str]], usual: list[str]) -> dict[str, dict[str, list[int]]]:
    """Heads that get another policy than their layer, as a profile lists them."""
    found: dict[str, dict[str, list[int]]] = {}
    for layer, of_heads in enumerate(policies):
        for head, policy in enumerate(of_heads):
            if policy != usual[layer]:
                found.setdefault(str(layer), {}).setdefault(policy, []).append(head)
    return found


def _shown(policies: Sequence[str]) -> str:
    """The policy of a layer, or the number of heads of each policy."""
    counts = Counter(policies).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{policy} x{count}" for policy, count in counts) or "?"
