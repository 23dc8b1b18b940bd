"""Probing: measures how sensitive each layer of a model is, and chooses a correction for it."""

from freeloc.probing.check import Check, check
from freeloc.probing.denoising import Objective, diffusion, encode, flow
from freeloc.probing.depths import Depth, Local, Loss, Output, Video
from freeloc.probing.depths.base import per_head, require_numbers, samples_of
from freeloc.probing.depths.lookup import find_depth
from freeloc.probing.facts import ProbeFacts
from freeloc.probing.places import motion_weight
from freeloc.probing.probe import probe
from freeloc.probing.rule import USUAL, Rule, Summary
from freeloc.probing.sensitivity import Sensitivity
from freeloc.probing.statistics import rank_correlation
from freeloc.probing.store import Measurements
from freeloc.probing.subject import Subject
from freeloc.probing.table import Table

__all__ = [
    "USUAL",
    "Check",
    "Depth",
    "Local",
    "Loss",
    "Measurements",
    "Objective",
    "Output",
    "ProbeFacts",
    "Rule",
    "Sensitivity",
    "Subject",
    "Summary",
    "Table",
    "Video",
    "check",
    "diffusion",
    "encode",
    "find_depth",
    "flow",
    "motion_weight",
    "per_head",
    "probe",
    "rank_correlation",
    "require_numbers",
    "samples_of",
]
