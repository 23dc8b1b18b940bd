"""Measurements: the tables of a probe with their origin, and the file that holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from freeloc.errors import ProbeError
from freeloc.probing.facts import SCHEMA_VERSION, Header, ProbeFacts, read_header, tables_of
from freeloc.probing.table import Table, read_tensors, write_tensors
from freeloc.profile.hub import LARGEST_MEASUREMENTS
from freeloc.untrusted import printable


@dataclass(frozen=True)
class Measurements:
    """The measurements of a probe. `freeloc.probing.Sensitivity` adds summaries and a choice of policies.

    Args:
        tables: tables by name, ``local.logits``, ``loss.value`` ... (docs/probe-your-model/depths.md lists them).
        facts: the origin of the measurements.
    """

    tables: Mapping[str, Table]
    facts: ProbeFacts

    @property
    def depths(self) -> list[str]:
        """Names of the depths that were probed. A plugin's depth may not be installed here."""
        return list(dict.fromkeys(name.split(".")[0] for name in self.tables))

    def table(self, name: str) -> Table:
        """One table.

        Raises:
            ProbeError: if it was not measured.
        """
        if name not in self.tables:
            raise ProbeError(f"'{name}' was not measured: found {', '.join(self.tables)}")
        return self.tables[name]

    def tables_of(self, depth: str) -> dict[str, Table]:
        """The tables of one depth by name; none if it was not probed."""
        return {name: table for name, table in self.tables.items() if name.split(".")[0] == depth}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file. The write is atomic.

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
        write_tensors(path, tensors, {"freeloc": text}, LARGEST_MEASUREMENTS)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ProbeError: if it cannot be read, or is not such a file.
        """
        tensors, metadata = read_tensors(Path(path), LARGEST_MEASUREMENTS)
        where = printable(str(path))
        if "freeloc" not in metadata:
            raise ProbeError(f"{where} holds no measurements of freeloc: expected metadata named 'freeloc', found none")
        header = read_header(metadata["freeloc"], where)
        try:
            return cls(tables_of(tensors, header), header.facts)
        except ProbeError as error:
            raise ProbeError(f"{where} holds no measurements of freeloc: {error}") from None

    def merge(self, other: "Measurements") -> Self:
        """The measurements of both. If both have a table, the prompts or clips of `other` are appended.

        Raises:
            ProbeError: if they are of different weights, or have tables that cannot be joined.
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
        return type(self)(tables, facts)


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
