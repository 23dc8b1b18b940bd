"""Profiles in Hugging Face repositories: ``freeloc.load_profile("somebody/their-profile")``.

A repository that shares a profile holds `PROFILE_FILE` and, if the profile was measured, `MEASUREMENTS_FILE`. It may be
the model's own repository. Files are kept in huggingface_hub's cache, and are later read without a network.
"""

import re
from pathlib import Path

from freeloc.errors import ProfileError
from freeloc.profile.schema import LARGEST_FILE

PROFILE_FILE = "freeloc-profile.json"
MEASUREMENTS_FILE = "freeloc-profile.safetensors"

LARGEST_MEASUREMENTS = 250_000_000
"""Largest size of a file of measurements, in bytes. Those of the tiny model have 185 thousand."""

LARGEST = {PROFILE_FILE: LARGEST_FILE, MEASUREMENTS_FILE: LARGEST_MEASUREMENTS}
"""The files that are downloaded, and the largest size of each in bytes."""

_REPOSITORY = re.compile(r"(?P<name>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,255}))?", re.ASCII)


class NoSuchFileError(ProfileError):
    """The repository does not have the requested file."""


def is_repository(name: str) -> bool:
    """Whether a text looks like a repository: owner/name, and perhaps @revision.

    >>> is_repository("somebody/a-profile"), is_repository("somebody/a-profile@v1.0"), is_repository("wan2.1")
    (True, True, False)
    >>> is_repository("../profile"), is_repository("a/b/c")
    (False, False)
    """
    match = _REPOSITORY.fullmatch(name)
    return match is not None and ".." not in name


def download(repository: str, file: str = PROFILE_FILE) -> Path:
    """The path of a repository's file in the local cache. It is downloaded if necessary.

    Args:
        repository: owner/name, of the main branch, or owner/name@revision: a branch, a tag or a commit.
        file: name of the file in the repository, one of `LARGEST`.

    Raises:
        NoSuchFileError: if the repository holds no such file.
        ProfileError: if huggingface_hub is not installed, there is no such repository or revision, the file is
            neither in the cache nor can be downloaded, or it is larger than a file of its kind may be.
    """
    refusal = ProfileError
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ProfileError(
            f"'{repository}' looks like a Hugging Face repository, which requires huggingface_hub ({error}): "
            'pip install "freeloc[hub]"; or give the path of a .json file'
        ) from error
    match = _REPOSITORY.fullmatch(repository)
    if match is None:
        raise ProfileError(f"expected a repository as owner/name or owner/name@revision, found '{repository:.100}'")
    largest, size = LARGEST[file], _size(match["name"], file, match["revision"])
    if size is not None and size > largest:
        raise ProfileError(
            f"cannot read {file} of the Hugging Face repository '{repository}': expected a file of at most {largest} "
            f"bytes, found {size} bytes"
        )
    try:
        return Path(hf_hub_download(match["name"], file, revision=match["revision"], library_name="freeloc"))
    except errors.LocalEntryNotFoundError:  # must come before its base class below
        problem = "it is not in the local cache, and the network cannot be reached or is switched off"
    except errors.GatedRepoError:  # must come before its base class below
        problem = "its owner must give you access: see its page, then run 'hf auth login'"
    except errors.RepositoryNotFoundError:
        problem = "there is no such repository, or it is private: check its name, or run 'hf auth login'"
    except errors.RevisionNotFoundError:
        problem = f"it has no revision '{match['revision']}'"
    except errors.EntryNotFoundError:
        refusal = NoSuchFileError
        problem = f"it has no file {file}: ask its owner to share one (docs/profiles.md says how)"
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:300]
    raise refusal(
        f"cannot read {file} of the Hugging Face repository '{repository}': {problem}. "
        "If you meant a file, give its whole path, ending in .json"
    )


def _size(name: str, file: str, revision: str | None) -> int | None:
    """Size of a repository's file in bytes, as its server says; None if it cannot be asked."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        return get_hf_file_metadata(hf_hub_url(name, file, revision=revision), library_name="freeloc").size
    except Exception:  # the download fails for the same reason, and says which, or there is a copy in the cache
        return None
