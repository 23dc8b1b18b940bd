"""freeloc: long videos from video diffusion transformers trained on short clips, without training."""

import importlib
import warnings

from freeloc.errors import FreelocError
from freeloc.inspection import inspect
from freeloc.layer import attend_layer
from freeloc.markers import hookimpl
from freeloc.patching import Patch, patch, unpatch
from freeloc.plans import FramePlan
from freeloc.probing import probe
from freeloc.profile.files import load_profile
from freeloc.profile.matching import default_profile
from freeloc.profile.planning import frame_plan
from freeloc.profile.schema import Profile
from freeloc.tuning import tune

__version__ = "0.2.0"

__all__ = [
    "FramePlan",
    "FreelocError",
    "Patch",
    "Profile",
    "__version__",
    "attend_layer",
    "default_profile",
    "frame_plan",
    "hookimpl",
    "inspect",
    "load_profile",
    "patch",
    "probe",
    "tune",
    "unpatch",
]

_MOVED = {
    "freeloc.adapter": ("MATMUL", "SDPA", "Adapter", "AttentionSite", "Kernel", "Refusal", "TemporalRope", "TokenGrid"),
    "freeloc.discovery": ("adapters", "find_adapter"),
    "freeloc.errors": ("AdapterError", "LayoutError", "PatchError", "ProbeError", "ProfileError", "RegistryError"),
    "freeloc.inspection": ("Inspection",),
    "freeloc.metrics": ("Scorer",),
    "freeloc.plans": ("Method",),
    "freeloc.probing": ("Sensitivity",),
}
"""Names that freeloc 0.1 had, by the package that has them now. They will be removed in 0.3."""


def __getattr__(name: str) -> object:
    for home, names in _MOVED.items():
        if name in names:
            warnings.warn(
                f"freeloc.{name} moved: write 'from {home} import {name}'. The old name will be removed in freeloc 0.3",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'freeloc' has no attribute '{name}'")
