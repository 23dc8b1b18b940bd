"""freeloc: long videos from video diffusion transformers trained on short clips, without training."""

from freeloc.adapter import MATMUL, SDPA, Adapter, AttentionSite, Kernel, Refusal, TokenGrid
from freeloc.errors import AdapterError, FreelocError, LayoutError, PatchError, ProbeError, ProfileError, RegistryError
from freeloc.fitting import default_profile
from freeloc.inspection import Inspection, inspect
from freeloc.methods import frame_plan
from freeloc.patching import Patch, patch, unpatch
from freeloc.plan import FramePlan, Method
from freeloc.probing import Sensitivity, probe
from freeloc.profile import Profile
from freeloc.profile_files import load_profile
from freeloc.registry import adapters, find_adapter, hookimpl
from freeloc.rope import TemporalRope
from freeloc.scorer import Scorer

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
    "ProbeError",
    "Profile",
    "ProfileError",
    "Refusal",
    "RegistryError",
    "Scorer",
    "Sensitivity",
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
    "probe",
    "unpatch",
]
