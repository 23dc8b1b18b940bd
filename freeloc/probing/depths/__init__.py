"""The built-in depths of probing, one file each. They are registered like those of plugins."""

from freeloc.markers import hookimpl
from freeloc.probing.depths.base import Depth
from freeloc.probing.depths.local import Local
from freeloc.probing.depths.loss import Loss
from freeloc.probing.depths.output import Output
from freeloc.probing.depths.video import Video

__all__ = ["Depth", "Local", "Loss", "Output", "Video"]


@hookimpl
def freeloc_depths() -> list[Depth]:
    """The built-in depths."""
    return [Local(), Output(), Loss(), Video()]
