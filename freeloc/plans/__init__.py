"""Corrections as data: `FramePlan`, two tables over pairs of latent frames, and the methods that make them."""

from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, FramePlan, relative_positions
from freeloc.plans.method import Method, ModelLike, PlanFunction, Plans, ProfileLike

__all__ = [
    "DENSE",
    "NONE",
    "STRIPED",
    "FramePlan",
    "Method",
    "ModelLike",
    "PlanFunction",
    "Plans",
    "ProfileLike",
    "relative_positions",
]
