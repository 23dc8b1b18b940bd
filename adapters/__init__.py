"""The adapters that come with freeloc. They enter through the entry-point group ``freeloc``, as anybody's do."""

from freeloc_adapters import hunyuan_video, wan

from freeloc import Adapter, Refusal, hookimpl


@hookimpl
def freeloc_adapters() -> list[Adapter | Refusal]:
    """What each family's file describes."""
    return [*hunyuan_video.ADAPTERS, *wan.ADAPTERS]
