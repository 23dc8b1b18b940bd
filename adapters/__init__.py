"""The adapters that come with freeloc. They enter through the entry-point group ``freeloc``, as anybody's do."""

from freeloc_adapters import wan

from freeloc import Adapter, hookimpl


@hookimpl
def freeloc_adapters() -> list[Adapter]:
    """One adapter per family."""
    return [wan.DIFFUSERS, wan.VACE, wan.ORIGINAL, wan.ORIGINAL_VACE]
