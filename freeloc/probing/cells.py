"""Cells: a probe's work in small parts, each saved as soon as it is measured, and shared by several processes."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.files import content_of, replacing
from freeloc.probing.table import read_tensors, write_tensors
from freeloc.untrusted import parsed, printable

# Set by accelerate launch and torchrun, and by mpirun, with which accelerate starts several processes on CPUs.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

LARGEST_CELL = 10_000_000_000
"""Largest size of a cell's file, in bytes. Cells may hold clips and recorded calls."""

LARGEST_SETTINGS = 10_000_000
"""Largest size of the file of settings, in bytes."""

T = TypeVar("T")
Cell = dict[str, Tensor]


class Cells:
    """The cells of one probe, by name.

    Args:
        folder: folder of the saved cells; None keeps them in memory only.
        settings: everything that the measurements depend on. A folder with other settings is refused.

    Raises:
        ProbeError: if the folder holds another probe, or cannot be written, or several processes have no folder.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._known: dict[str, Cell] = {}
        self.process, self.processes = _from_environment(RANK, 0), _from_environment(SIZE, 1)
        if self.folder is not None:
            _claim(self.folder, settings)
        elif self.processes > 1:
            raise ProbeError(
                f"expected folder=... for a probe in {self.processes} processes: they share their measurements there"
            )

    def all(self, names: Sequence[str], make: Callable[[str], Cell], title: str) -> dict[str, Cell]:
        """All cells of these names. Missing ones are measured; several processes share this work."""
        share = names[self.process :: self.processes]
        shown = f"{title}, process {self.process + 1} of {self.processes}"
        for name in _progress([name for name in share if not self.has(name)], shown):
            self.get(name, make)
        self._await(names, title)
        return {name: self.get(name, make) for name in names}

    def has(self, name: str) -> bool:
        """Whether this cell exists."""
        return name in self._known or (self.folder is not None and self._path(name).exists())

    def get(self, name: str, make: Callable[[str], Cell]) -> Cell:
        """One cell, which is measured if it is missing."""
        if name not in self._known:
            if self.folder is None:
                self._known[name] = make(name)
            else:
                if not self._path(name).exists():
                    write_tensors(self._path(name), make(name), {}, LARGEST_CELL)
                self._known[name] = read_tensors(self._path(name), LARGEST_CELL)[0]
        return self._known[name]

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / f"{name}.safetensors"

    def _await(self, names: Sequence[str], title: str) -> None:
        """Wait for the cells of the other processes."""
        missing = [name for name in names if not self.has(name)]
        for name in _progress(missing, f"{title}, others"):
            while not self.has(name):
                time.sleep(0.1)


def _from_environment(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Record the settings in a new folder, or check that an existing one has the same settings."""
    path = folder / "probe.json"
    text = json.dumps(settings, indent=1, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
        found = parsed(content_of(path, LARGEST_SETTINGS))
    except (OSError, ValueError, RecursionError) as error:
        raise ProbeError(f"cannot keep a probe in {folder}: {printable(str(error))}") from error
    expected = json.loads(text)
    if found != expected:
        names = found.keys() | expected.keys() if isinstance(found, dict) else expected.keys()
        changed = [
            name for name in sorted(names) if not isinstance(found, dict) or found.get(name) != expected.get(name)
        ]
        raise ProbeError(
            f"{folder} holds a probe with another {printable(', '.join(changed))}: "
            "give another folder, or remove that one"
        )


def write_json(path: Path, content: Any) -> None:
    """Write a small file beside the cells. The write is atomic.

    Raises:
        ProbeError: if it cannot be written.
    """
    try:
        with replacing(path) as part:
            part.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {error.strerror}") from error


def _progress(things: Iterable[T], title: str) -> Iterable[T]:
    """Add a progress bar if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return things
    return tqdm(list(things), title, disable=not things)  # type: ignore[no-any-return]
