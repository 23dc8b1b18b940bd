"""Probing: how sensitive each layer of a model is, and what it should get."""

from freeloc.probing.choice import Rule, Summary
from freeloc.probing.denoising import Objective, diffusion, encode, flow
from freeloc.probing.facts import ProbeFacts
from freeloc.probing.local import Local
from freeloc.probing.loss import Loss
from freeloc.probing.output import Output
from freeloc.probing.probe import Depth, probe
from freeloc.probing.sensitivity import Sensitivity
from freeloc.probing.table import Table
from freeloc.probing.video import Video

__all__ = [
    "Depth",
    "Local",
    "Loss",
    "Objective",
    "Output",
    "ProbeFacts",
    "Rule",
    "Sensitivity",
    "Summary",
    "Table",
    "Video",
    "diffusion",
    "encode",
    "flow",
    "probe",
]
