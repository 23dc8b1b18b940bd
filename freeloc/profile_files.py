"""Reading profiles: by name, from a file, with an error that says what is wrong where."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from freeloc.errors import ProfileError, RegistryError
from freeloc.profile import SCHEMA_VERSION, Profile
from freeloc.registry import registry

LARGEST_FILE = 1_000_000
"""Bytes of a profile, at most."""


def load_profile(name_or_path: str | Path | Profile) -> Profile:
    """A profile by name (``freeloc profiles`` lists them) or from a file.

    Raises:
        ProfileError: if there is no such profile (near names are suggested) or it is malformed: the message names each
            field, its value, and what is allowed.
    """
    if isinstance(name_or_path, Profile):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix != ".json" and not path.is_file():
        try:
            path = registry().profiles.get(str(name_or_path), way_out="; or give the path of a .json file")
        except RegistryError as error:
            raise ProfileError(str(error)) from error
    return _read(path)


def _read(path: Path) -> Profile:
    """The profile in a file, with the measurements beside it the ones that it names."""
    text = _text(path)
    try:
        content = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not JSON: {error}") from error
    profile = validated(content, str(path))
    measurements = path.with_suffix(".safetensors")
    if profile.evidence and measurements.is_file() and (found := digest(measurements)) != profile.evidence.sha256:
        raise ProfileError(
            f"{measurements} holds other measurements than {path.name} rests on: expected sha256 "
            f"{profile.evidence.sha256[:12]}..., found {found[:12]}...: get both files from the same place, or remove "
            "the measurements, which are not needed to use the profile"
        )
    return profile


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size <= LARGEST_FILE and (path.is_file() or not path.exists()):
            return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ProfileError(f"cannot read the profile {path}: {error.strerror}") from error
    except ValueError as error:
        raise ProfileError(f"{path} is not JSON: {error}") from error
    found = f"{size} bytes" if size else "a folder or a device"
    raise ProfileError(
        f"cannot read the profile {path}: expected a file of at most {LARGEST_FILE} bytes, found {found}"
    )


def digest(path: Path) -> str:
    """sha256 of a file.

    Raises:
        ProfileError: if it cannot be read.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from error
    return found.hexdigest()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless it gives a field twice."""
    counts = Counter(name for name, _ in pairs)
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"the field '{name}' is given {count} times")
    return dict(pairs)


def validated(content: Any, where: str) -> Profile:
    """A profile from what a JSON file holds, or an error that names each field that is wrong."""
    version = content.get("schema_version") if isinstance(content, dict) else SCHEMA_VERSION
    if type(version) is not int or version != SCHEMA_VERSION:
        newer = ". A newer file needs a newer freeloc: pip install --upgrade freeloc"
        is_newer = type(version) is int and version > SCHEMA_VERSION
        raise ProfileError(
            f"{where}: expected schema_version {SCHEMA_VERSION}, found {version!r}{newer if is_newer else ''}"
        )
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"]) or "profile"
            value = "" if isinstance(problem["input"], dict | Profile) else f", found {problem['input']!r:.80}"
            lines.append(f"  {place}: {problem['msg']}{value}")
        raise ProfileError(f"{where} is not a profile:\n" + "\n".join(lines)) from None
