"""Reading profiles: by name, from a file, with an error that says what is wrong where."""

import hashlib
import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from freeloc import hub
from freeloc.errors import ProfileError, RegistryError
from freeloc.profile import LARGEST_FILE, SCHEMA_VERSION, Profile
from freeloc.registry import registry

MOST_LINES = 10
"""Of an error that lists what is wrong."""

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlist = _BRIEF.maxtuple = 8


def load_profile(name_or_path: str | Path | Profile) -> Profile:
    """A profile by name (``freeloc profiles`` lists them), from a file, or from a Hugging Face repository.

    >>> load_profile("wan2.1").model.layers
    30

    Args:
        name_or_path: an installed profile's name; a path; or ``"owner/name"`` or ``"owner/name@revision"`` of a
            repository that holds a profile (see `freeloc.hub`): it is kept in huggingface_hub's cache, and found there
            without a network. A file of that path comes first.

    Raises:
        ProfileError: if there is no such profile (near names are suggested) or it is malformed: the message names the
            first fields that are wrong, their values, and what is allowed.
    """
    return name_or_path if isinstance(name_or_path, Profile) else _read(profile_path(name_or_path))


def profile_path(name_or_path: str | Path) -> Path:
    """Where the file of a profile is: see `load_profile`.

    Raises:
        ProfileError: if nothing has that name.
    """
    try:
        path, name = Path(name_or_path), str(name_or_path)
        if path.suffix == ".json" or path.is_file():
            return path
        if hub.is_repository(name):
            return hub.download(name)
        if printable(name) == name:
            way_out = "; or give the path of a .json file, or a Hugging Face repository, owner/name"
            return registry().profiles.get(name, way_out)
    except (TypeError, OSError):  # OSError: where the name is too long for a file
        pass
    except RegistryError as error:
        raise ProfileError(str(error)) from error
    raise ProfileError(f"expected a Profile, its name, or the path of a .json file, found {brief(name_or_path)}")


def measurements_path(name_or_path: str | Path) -> Path | None:
    """Where the measurements that a profile rests on are: beside its file, in the same repository, or None: nowhere.

    >>> measurements_path("wan2.1")  # a published choice: nobody measured it

    Raises:
        ProfileError: if there is no such profile, or its measurements are others or cannot be had.
    """
    path = profile_path(name_or_path)
    beside = path.with_suffix(".safetensors")
    missing = _read(path).evidence and not _is_file(beside)
    if missing and hub.is_repository(str(name_or_path)) and not Path(name_or_path).is_file():
        hub.download(str(name_or_path), hub.MEASUREMENTS_FILE)
        _read(path)  # which compares the digest
    return beside if _is_file(beside) else None


def _read(path: Path) -> Profile:
    """The profile in a file, with the measurements beside it the ones that it names."""
    where = printable(str(path))
    text = _text(path, where)
    try:
        content = parsed(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{where} is not JSON: {error}") from error
    profile = validated(content, where)
    measurements = path.with_suffix(".safetensors")
    if profile.evidence and _is_file(measurements) and (found := digest(measurements)) != profile.evidence.sha256:
        raise ProfileError(
            f"{printable(str(measurements))} holds other measurements than the profile beside it rests on: expected "
            f"sha256 {profile.evidence.sha256[:12]}..., found {found[:12]}...: get both files from the same place, or "
            "remove the measurements, which are not needed to use the profile"
        )
    return profile


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def _text(path: Path, where: str) -> str:
    try:
        regular = path.is_file()
        if not regular and path.exists():  # opening a pipe would wait for somebody to write to it
            found = "a folder or a device"
        else:
            with path.open("rb") as file:
                content = file.read(LARGEST_FILE + 1)
            if len(content) <= LARGEST_FILE:
                return content.decode("utf-8")
            found = f"{path.stat().st_size} bytes"
    except OSError as error:
        raise ProfileError(f"cannot read the profile {where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{where} is not JSON: {error}") from error
    except ValueError as error:
        raise ProfileError(f"cannot read the profile {where}: expected the path of a .json file: {error}") from error
    raise ProfileError(
        f"cannot read the profile {where}: expected a file of at most {LARGEST_FILE} bytes, found {found}"
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
        raise ProfileError(f"cannot read {printable(str(path))}: {error.strerror}") from error
    return found.hexdigest()


def parsed(text: str) -> Any:
    """What JSON says, where no object gives a field twice.

    Raises:
        ValueError, RecursionError: if it is not JSON.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless it gives a field twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field '{printable(name)}' is given {count} times")
    return found


def validated(content: Any, where: str) -> Profile:
    """A profile from what a JSON file holds, or an error that names the first fields that are wrong."""
    version = content.get("schema_version") if isinstance(content, dict) else SCHEMA_VERSION
    check_version(version, SCHEMA_VERSION, where)
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise ProfileError(f"{where} is not a profile:\n{problems(error)}") from None


def check_version(found: Any, expected: int, where: str, kind: str = "") -> None:
    """See that a file, of profiles or of another kind, is of the version that this freeloc reads.

    Raises:
        ProfileError: if it is not.
    """
    if type(found) is not int or found != expected:
        is_newer = type(found) is int and found > expected
        newer = ". A newer file needs a newer freeloc: pip install --upgrade freeloc" if is_newer else ""
        raise ProfileError(f"{where}: expected {kind}schema_version {expected}, found {brief(found)}{newer}")


def problems(error: ValidationError) -> str:
    """The first things that are wrong, a line each: the field, what is allowed, what was found."""
    found = error.errors(include_url=False)
    lines = []
    for problem in found[:MOST_LINES]:
        place = printable(".".join(str(part) for part in problem["loc"]), 80) or "profile"
        hidden = isinstance(problem["input"], dict | Profile)
        value = "" if hidden else f", found {brief(problem['input'])}"
        lines.append(f"  {place}: {problem['msg'][:200]}{value}")
    if len(found) > MOST_LINES:
        lines.append(f"  and {len(found) - MOST_LINES} more")
    return "\n".join(lines)


def brief(value: Any) -> str:
    """A value as Python writes it, and never more than a line of it."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # Python refuses to write very large integers
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def printable(text: str, length: int = 300) -> str:
    """A text from a stranger on one line: its end if it is long, with escapes if a terminal could not show it."""
    shown = text if len(text) <= length else f"...{text[-length:]}"
    return shown if shown.isprintable() else repr(shown)[1:-1]
