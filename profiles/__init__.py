"""The profiles that come with freeloc, registered through the entry-point group ``freeloc`` like any plugin's."""

from pathlib import Path

from freeloc import hookimpl


@hookimpl
def freeloc_profiles() -> list[Path]:
    """Every JSON file in this folder."""
    return sorted(Path(__file__).parent.glob("*.json"))
