"""Tuning: searches the best policies for a model by denoising loss, and checks them on other clips and on videos."""

from freeloc.tuning.candidates import ON_ONE_LAYER, UNIFORM, Candidate
from freeloc.tuning.result import Tuned
from freeloc.tuning.tune import tune

__all__ = ["ON_ONE_LAYER", "UNIFORM", "Candidate", "Tuned", "tune"]
