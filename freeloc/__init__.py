"""freeloc: long videos from video diffusion transformers trained on short clips, without training."""

from freeloc.adapter import MATMUL, SDPA, Adapter, AttentionSite, Kernel, Refusal, TemporalRope, TokenGrid
from freeloc.errors import AdapterError, FreelocError, LayoutError, PatchError, ProfileError, RegistryError
from freeloc.inspection import Inspection, inspect
from freeloc.methods import frame_plan
from freeloc.patching import Patch, patch, unpatch
from freeloc.plan import FramePlan, Method
from freeloc.profile import Profile, default_profile, load_profile
from freeloc.registry import adapters, find_adapter, hookimpl

__all__ = [
    "MATMUL",
    "SDPA",
    "Adapter",
    "AdapterError",
    "AttentionSite",
    "FramePlan",
    "FreelocError",
    "Inspection",
    "Kernel",
    "LayoutError",
    "Method",
    "Patch",
    "PatchError",
    "Profile",
    "ProfileError",
    "Refusal",
    "RegistryError",
    "TemporalRope",
    "TokenGrid",
    "adapters",
    "default_profile",
    "find_adapter",
    "frame_plan",
    "hookimpl",
    "inspect",
    "load_profile",
    "patch",
    "unpatch",
]
