"""The node ``freeloc: load profile``. Workflows are untrusted: what they name is a name, and never a path."""

import hashlib
from pathlib import Path

import freeloc
from freeloc.errors import FreelocError
from freeloc.files import content_of
from freeloc.profile import hub
from freeloc.profile.schema import LARGEST_FILE
from freeloc.registry import registry

FOLDER = "freeloc"
"""The folder in ComfyUI's ``models`` whose .json files are offered."""

HUB = "Hugging Face repository"
"""The choice that takes what `repository` names."""


def register_folder():
    """Tell ComfyUI of the folder for profiles, ``models/freeloc``."""
    folder_paths = _folder_paths()
    if folder_paths is not None:
        folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def _folder_paths():
    """ComfyUI's module of this name, or None outside ComfyUI."""
    try:
        import folder_paths
    except ImportError:
        return None
    return folder_paths


def files():
    """The profiles in ComfyUI's folder."""
    folder_paths = _folder_paths()
    found = folder_paths.get_filename_list(FOLDER) if folder_paths else []
    return [name for name in found if name.lower().endswith(".json")]


def names():
    """The installed profiles."""
    return [name for name, _, _ in registry().profiles.things()]


def problem(profile, repository):
    """What is wrong with these inputs, or an empty text. A workflow may hold values of any type."""
    if not isinstance(profile, str) or not isinstance(repository, str):
        return f"expected profile and repository to be texts, found {profile!r:.100} and {repository!r:.100}"
    if profile == HUB:
        if not hub.is_repository(repository):
            return (
                f"expected repository as owner/name or owner/name@revision, found "
                f"{repository!r:.100}: fill it in, or choose another profile than '{HUB}'"
            )
        return ""
    if repository:
        return f"choose '{HUB}' as profile to use the repository, or clear the repository"
    if profile not in names() and profile not in files():
        return (
            f"there is no profile {profile!r:.100}: choose one of the list, or put the file "
            f"into ComfyUI/models/{FOLDER} and reload the page"
        )
    return ""


def path_of(profile, repository):
    """The file of a profile.

    Raises:
        FreelocError: if the inputs name none.
    """
    wrong = problem(profile, repository)
    if wrong:
        raise FreelocError(wrong)
    if profile == HUB:
        return hub.download(repository)
    if profile in names():
        return registry().profiles.get(profile)
    return Path(_folder_paths().get_full_path_or_raise(FOLDER, profile))


class LoadProfile:
    """Loads a profile: which correction each layer of a model gets."""

    CATEGORY = "freeloc"
    DESCRIPTION = (
        "Loads a freeloc profile, which says what each layer of a model gets: one that came with freeloc, a .json file "
        f"in ComfyUI/models/{FOLDER}, or one from a Hugging Face repository. Only needed where 'freeloc: long video' "
        "does not find the right one itself."
    )
    FUNCTION = "load"
    RETURN_TYPES = ("FREELOC_PROFILE",)
    RETURN_NAMES = ("profile",)

    @classmethod
    def INPUT_TYPES(cls):
        """The inputs: a choice, and the name of a repository."""
        tooltip = f"An installed profile, a .json file in ComfyUI/models/{FOLDER}, or '{HUB}'."
        return {
            "required": {"profile": ([*names(), *files(), HUB], {"default": "wan2.1", "tooltip": tooltip})},
            "optional": {
                "repository": (
                    "STRING",
                    {"default": "", "tooltip": f"For '{HUB}': owner/name, or owner/name@revision. Else empty."},
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, profile, repository=""):
        """Whether the inputs can be used, or why not. ComfyUI asks before it runs anything."""
        return problem(profile, repository) or True

    @classmethod
    def IS_CHANGED(cls, profile, repository=""):
        """A value that changes with the content of a file, so that an edited profile is read again."""
        if profile == HUB or problem(profile, repository):
            return repository
        return hashlib.sha256(content_of(path_of(profile, repository), LARGEST_FILE)).hexdigest()

    def load(self, profile, repository=""):
        """The profile."""
        return (freeloc.load_profile(path_of(profile, repository)),)
