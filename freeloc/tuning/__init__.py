"""Tuning: searches the best policies for a model by denoising loss, and checks them on other clips and on videos."""

from freeloc.tuning.candidates import Candidate
from freeloc.tuning.defaults import UNIFORM
from freeloc.tuning.result import Tuned
from freeloc.tuning.tune import tune

__all__ = ["UNIFORM", "Candidate", "Tuned", "tune"]
