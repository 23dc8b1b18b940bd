"""ComfyUI nodes that make longer videos than a model was trained on, with freeloc.

ComfyUI imports this folder from ``custom_nodes``. Nothing here imports ComfyUI before a node runs.
"""

from .loading import LoadProfile, register_folder
from .long_video import LongVideo
from .measuring import Measure
from .reporting import Report

register_folder()

NODE_CLASS_MAPPINGS = {
    "FreelocLongVideo": LongVideo,
    "FreelocLoadProfile": LoadProfile,
    "FreelocReport": Report,
    "FreelocMeasure": Measure,
}
"""Names in workflow files. They never change."""

NODE_DISPLAY_NAME_MAPPINGS = {
    "FreelocLongVideo": "freeloc: long video",
    "FreelocLoadProfile": "freeloc: load profile",
    "FreelocReport": "freeloc: report",
    "FreelocMeasure": "freeloc: measure",
}
