"""Reading profiles by name, from files or from repositories, with errors that say which fields are wrong."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from freeloc.errors import FreelocError, ProfileError, RegistryError
from freeloc.files import content_of, opened
from freeloc.profile import hub
from freeloc.profile.policies import wrong_policies
from freeloc.profile.schema import LARGEST_FILE, SCHEMA_VERSION, Policy, Profile, version_for
from freeloc.registry import registry
from freeloc.untrusted import brief, check_version, parsed, printable, problems


def load_profile(name_or_path: str | Path | Profile) -> Profile:
    """A profile by name (``freeloc profiles`` lists them), from a file, or from a Hugging Face repository.

    >>> load_profile("wan2.1").model.layers
    30

    Args:
        name_or_path: an installed profile's name; a path; or ``"owner/name"`` or ``"owner/name@revision"`` of a
            Hugging Face repository (see `freeloc.profile.hub`), which is cached and later read without a network. An
            existing file with that path takes precedence.

    Raises:
        ProfileError: if there is no such profile (the message suggests similar names) or it is malformed (the message
            names the first wrong fields, their values, and what is allowed).
    """
    return name_or_path if isinstance(name_or_path, Profile) else _read(profile_path(name_or_path))


def profile_path(name_or_path: str | Path) -> Path:
    """The path of a profile's file. For the argument see `load_profile`.

    Raises:
        ProfileError: if there is no such profile.
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
    except (TypeError, OSError):  # OSError: if the name is too long for a file
        pass
    except RegistryError as error:
        raise ProfileError(str(error)) from error
    raise ProfileError(f"expected a Profile, its name, or the path of a .json file, found {brief(name_or_path)}")


def measurements_path(name_or_path: str | Path) -> Path | None:
    """The path of the measurements behind a profile, beside its file or in the same repository; None if there are none.

    >>> measurements_path("wan2.1")  # a published profile without measurements

    Raises:
        ProfileError: if there is no such profile, or if its measurements have another digest or cannot be read.
    """
    path = profile_path(name_or_path)
    if _read(path).evidence is None:  # then a file beside it is not its own
        return None
    beside = path.with_suffix(".safetensors")
    if not _is_file(beside) and hub.is_repository(str(name_or_path)) and not Path(name_or_path).is_file():
        try:
            hub.download(str(name_or_path), hub.MEASUREMENTS_FILE)
        except hub.NoSuchFileError:
            return None
        _read(path)  # which compares the digest
    return beside if _is_file(beside) else None


def _read(path: Path) -> Profile:
    """The profile in a file. It checks that measurements beside the file are the ones that the profile names."""
    where = printable(str(path))
    try:
        content = parsed(content_of(path, LARGEST_FILE))
    except FreelocError as error:
        raise ProfileError(f"cannot read the profile {where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{where} is not JSON: {error}") from error
    profile = validated(content, where)
    measurements = path.with_suffix(".safetensors")
    if profile.evidence and _is_file(measurements) and (found := digest(measurements)) != profile.evidence.sha256:
        raise ProfileError(
            f"{printable(str(measurements))} does not hold the measurements of the profile beside it: expected "
            f"sha256 {profile.evidence.sha256[:12]}..., found {found[:12]}...: get both files from the same place, or "
            "remove the measurements, which are not needed to use the profile"
        )
    return profile


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def digest(path: Path) -> str:
    """sha256 of a file of measurements.

    Raises:
        ProfileError: if it cannot be read, or is larger than `freeloc.profile.hub.LARGEST_MEASUREMENTS`.
    """
    found = hashlib.sha256()
    try:
        with opened(path, hub.LARGEST_MEASUREMENTS) as file:
            while part := file.read(1 << 20):
                found.update(part)
    except (FreelocError, OSError) as error:
        raise ProfileError(f"cannot read the measurements {printable(str(path))}: {error}") from error
    return found.hexdigest()


def validated(content: Any, where: str) -> Profile:
    """A profile from the content of a JSON file, or an error that names the first wrong fields."""
    version = content.get("schema_version") if isinstance(content, dict) else 1
    try:
        check_version(version, SCHEMA_VERSION, where)
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise ProfileError(f"{where} is not a profile:\n{problems(error)}") from None
    except FreelocError as error:
        raise ProfileError(str(error)) from None
    if profile.schema_version > 1 and (wrong := wrong_policies(profile)):
        raise ProfileError(f"{where} is not a profile:\n{wrong}")
    return profile


def with_choice(
    profile: Profile,
    layers: Mapping[Policy, Sequence[int]],
    heads: Mapping[str, Mapping[Policy, Sequence[int]]] | None = None,
    where: str = "the choice",
    **changes: Any,
) -> Profile:
    """A copy of a profile with other policies for layers and heads, its own ones or any registered methods.

    Definitions of policies that are no longer used are removed. The schema version is the oldest that suffices.

    >>> changed = with_choice(load_profile("tiny-wan"), {"riflex": [0, 1, 2], "vrpr": [3, 4, 5, 6, 7]})
    >>> changed.policy(0), changed.schema_version
    ('riflex', 2)

    Args:
        profile: the profile to copy.
        layers: layers by policy.
        heads: heads by layer and policy; by default all heads get the policy of their layer.
        where: name of the new profile in error messages.
        changes: other fields to replace.

    Raises:
        ProfileError: if there is no such policy, or a layer or head has none or two.
    """
    layers = {policy: list(places) for policy, places in layers.items() if places}
    heads = {layer: {policy: list(places) for policy, places in own.items()} for layer, own in (heads or {}).items()}
    used = {*layers, *(policy for own in heads.values() for policy in own)}
    policies = {name: policy for name, policy in profile.policies.items() if name in used}
    content = profile.model_dump() | {"policies": policies, "layers": layers, "heads": heads}
    version = version_for(policies, layers, heads, changes.get("noise", profile.noise))
    return validated(content | {"schema_version": version} | changes, where)
