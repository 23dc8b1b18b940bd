"""Sensitivity: what a probe measured, as named tensors in one file, with all that says what they are of."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freeloc.errors import ProbeError
from freeloc.probing.choice import BY_DEPTH, Rule, Summary, choose, rank_correlation, samples, summary
from freeloc.probing.facts import SCHEMA_VERSION, Header, ProbeFacts, read_header, tables_of
from freeloc.probing.table import Table, read_tensors, write_tensors
from freeloc.profile.files import digest, validated
from freeloc.profile.schema import POLICIES, Policy, Profile
from freeloc.untrusted import brief, printable


@dataclass(frozen=True)
class Sensitivity:
    """What a probe measured.

    Args:
        tables: by name: ``local.logits``, ``loss.value`` ...: docs/probe-your-model.md lists them.
        facts: see `ProbeFacts`.
    """

    tables: Mapping[str, Table]
    facts: ProbeFacts

    def __str__(self) -> str:
        return self.text()

    def text(self, profile: Profile | None = None) -> str:
        """A line per layer: how sensitive it is, and what a profile gives it; by default the one that would be chosen.

        Raises:
            ProbeError: if no known depth was measured.
        """
        depth, facts = self._deepest, self.facts
        found, why = self.summary(depth), []
        if profile is not None:
            chosen = [profile.head_policies(layer) for layer in range(profile.model.layers)]
        else:
            try:
                chosen = choose(self, depth, Rule())
            except ProbeError as error:  # the numbers are shown all the same
                chosen, why = [[] for _ in found.position], [f"no policy: {error}"]
        lines = [
            f"{facts.profile.model.name}, {' and '.join(map(str, facts.latent_frames))} latent frames, depth {depth}",
            f"{'layer':>5} {'position':>10} {'context':>10}  {'policy'}",
        ]
        rows = zip(found.position.tolist(), found.context.tolist(), chosen, strict=True)
        lines += [
            f"{n:5} {position:10.4g} {context:10.4g}  {_told(own)}" for n, (position, context, own) in enumerate(rows)
        ]
        return "\n".join(lines + why)

    @property
    def depths(self) -> list[str]:
        """What was probed: ``local``, ``output``, ``loss``, ``video``."""
        return list(dict.fromkeys(name.split(".")[0] for name in self.tables))

    def table(self, name: str) -> Table:
        """One table.

        Raises:
            ProbeError: if it was not measured.
        """
        if name not in self.tables:
            raise ProbeError(f"'{name}' was not measured: found {', '.join(self.tables)}")
        return self.tables[name]

    def summary(self, depth: str | None = None, heads: bool = False, scorer: str | None = None) -> Summary:
        """How sensitive each layer or head is to positions and to context: see `Summary`.

        Raises:
            ProbeError: if the depth was not measured.
        """
        return summary(self, depth or self._deepest, heads, scorer)

    def compare(self, other: "Sensitivity") -> dict[tuple[str, str], tuple[float, float]]:
        """Rank correlation over layers of positions and of context, for every depth of this with every one of `other`.

        1 where both put the layers in the same order, 0 where they have nothing to do with each other.

        Raises:
            ProbeError: if they are of models with other numbers of layers.
        """
        mine, its = self.facts.profile.model, other.facts.profile.model
        if mine.layers != its.layers:
            raise ProbeError(
                f"expected measurements of models with as many layers, found {mine.layers} of {mine.name} and "
                f"{its.layers} of {its.name}"
            )
        pairs = itertools.product(self.depths, other.depths)
        found = {pair: (self.summary(pair[0]), other.summary(pair[1])) for pair in pairs}
        return {
            pair: (rank_correlation(a.position, b.position), rank_correlation(a.context, b.context))
            for pair, (a, b) in found.items()
        }

    def to_profile(
        self, path: str | Path | None = None, *, depth: str | None = None, rule: Rule | None = None, heads: bool = False
    ) -> Profile:
        """Choose a policy for each layer by a stated rule.

        Args:
            path: where to write the profile, a ``.json`` file, and beside it the measurements it rests on.
            depth: whose measurements decide; by default the deepest that was measured.
            rule: with thresholds of your own.
            heads: choose for each head.

        Raises:
            ProbeError: if the depth was not measured, or not in every layer, or once where a standard error decides; if
                the path does not end in ``.json``.
            ProfileError: if not all layers were measured.
        """
        if path is not None and Path(path).suffix != ".json":  # the measurements' file, or their folder, might be it
            raise ProbeError(f"expected a path that ends in .json for the profile, found {printable(str(path))}")
        depth, rule = depth or self._deepest, rule or Rule()
        policies = choose(self, depth, rule, heads)
        usual = [Counter(of_heads).most_common(1)[0][0] for of_heads in policies]
        facts, known = self.facts, self.facts.profile
        name, count = samples(self, depth)
        content = known.model_dump() | {
            "layers": {policy: [n for n, own in enumerate(usual) if own == policy] for policy in POLICIES},
            "heads": _differing(policies, usual),
            "provenance": {
                "kind": "probed",
                "source": facts.command,
                "notes": f"Chosen by depth {depth} ({rule}) on {count} {name if count > 1 else name[:-1]}, "
                f"{' and '.join(map(str, facts.latent_frames))} latent frames. Weights {facts.fingerprint[:12]}.",
            },
        }
        content["layers"] = {policy: layers for policy, layers in content["layers"].items() if layers}
        content["evidence"] = None
        if path is not None:
            measurements = Path(path).with_suffix(".safetensors")
            self.save(measurements)
            content["evidence"] = {"sha256": digest(measurements), "rule": f"{depth}: {rule}"}
        profile = validated(content, "what was chosen")
        if path is not None:
            profile.save(path)
        return profile

    @property
    def _deepest(self) -> str:
        found = next((depth for depth in BY_DEPTH if depth in self.depths), None)
        if found is None:
            raise ProbeError(f"expected measurements of a depth of {', '.join(BY_DEPTH)}, found {brief(self.depths)}")
        return found

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            ProbeError: if it cannot be written.
        """
        path = Path(path)
        axes = {name: table.axes for name, table in self.tables.items()}
        try:
            text = Header(schema_version=SCHEMA_VERSION, facts=self.facts, axes=axes).model_dump_json()
        except ValueError as error:
            raise ProbeError(f"cannot write {path}: {printable(str(error)[:300])}") from error
        tensors = {name: table.values for name, table in self.tables.items()}
        write_tensors(path, tensors, {"freeloc": text})

    @classmethod
    def load(cls, path: str | Path) -> "Sensitivity":
        """Read such a file.

        Raises:
            ProbeError: if it cannot be read, or is something else.
        """
        tensors, metadata = read_tensors(Path(path))
        where = printable(str(path))
        if "freeloc" not in metadata:
            raise ProbeError(f"{where} holds no measurements of freeloc: expected metadata named 'freeloc', found none")
        header = read_header(metadata["freeloc"], where)
        try:
            return cls(tables_of(tensors, header), header.facts)
        except ProbeError as error:
            raise ProbeError(f"{where} holds no measurements of freeloc: {error}") from None

    def merge(self, other: "Sensitivity") -> "Sensitivity":
        """Both: what only one has, and of what both have the prompts or clips of one after those of the other.

        Raises:
            ProbeError: if they are of different weights, or cannot be put side by side.
        """
        mine, its = self.facts, other.facts
        if mine.fingerprint != its.fingerprint:
            raise ProbeError(
                "expected measurements of one model, found two: "
                f"{mine.profile.model.name} ({mine.fingerprint[:12]}) and {its.profile.model.name} "
                f"({its.fingerprint[:12]})"
            )
        tables = {**self.tables, **other.tables}
        for name in self.tables.keys() & other.tables.keys():
            tables[name] = _joined(name, self.tables[name], other.tables[name])
        facts = mine.model_copy(
            update={
                "prompts": _union(mine.prompts, its.prompts),
                "latent_frames": _union(mine.latent_frames, its.latent_frames),
                "settings": mine.settings | its.settings,
                "command": "; ".join(_union([mine.command], [its.command])),
            }
        )
        return Sensitivity(tables, facts)


def _differing(policies: list[list[Policy]], usual: list[Policy]) -> dict[str, dict[Policy, list[int]]]:
    """Heads that get something else than their layer, as a profile lists them."""
    found: dict[str, dict[Policy, list[int]]] = {}
    for layer, of_heads in enumerate(policies):
        for head, policy in enumerate(of_heads):
            if policy != usual[layer]:
                found.setdefault(str(layer), {}).setdefault(policy, []).append(head)
    return found


def _told(policies: Sequence[Policy]) -> str:
    """What the heads of a layer get."""
    counts = Counter(policies).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{policy} x{count}" for policy, count in counts) or "?"


def _union(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys([*first, *second]))


def _joined(name: str, first: Table, second: Table) -> Table:
    """Two tables that differ along one axis, one after the other."""
    if list(first.axes) != list(second.axes):
        raise ProbeError(f"'{name}' has the axes {list(first.axes)} in one file and {list(second.axes)} in the other")
    along = [axis for axis in first.axes if first.axes[axis] != second.axes[axis]]
    if len(along) != 1 or along[0] not in ("prompts", "clips"):
        raise ProbeError(
            f"'{name}' can be merged where only the prompts or clips differ, found a difference in {along or 'nothing'}"
        )
    axis = along[0]
    if both := set(first.axes[axis]) & set(second.axes[axis]):
        raise ProbeError(f"'{name}' has the {axis} {sorted(both, key=str)} in both files")
    values = torch.cat([first.values, second.values], dim=list(first.axes).index(axis))
    return Table(values, {**first.axes, axis: first.axes[axis] + second.axes[axis]})
