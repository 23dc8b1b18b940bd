"""The profiles that come with freeloc. They enter through the entry-point group ``freeloc``, as anybody's do."""

from pathlib import Path

from freeloc import hookimpl


@hookimpl
def freeloc_profiles() -> list[Path]:
    """Every JSON file in this folder."""
    return sorted(Path(__file__).parent.glob("*.json"))
