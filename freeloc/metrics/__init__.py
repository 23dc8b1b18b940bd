"""Measures of long videos, and scorers: named functions that score a video."""

from freeloc.metrics.distances import frame_features, frechet_distance, motion_features
from freeloc.metrics.measures import (
    MEASURES,
    colour_spread,
    contrast,
    denoising_loss,
    distance_by_lag,
    drift,
    drift_curve,
    dynamic_degree,
    flicker,
    frozen_share,
    loop_strength,
    motion_smoothness,
    pairs_with_texture,
    sharpness,
)
from freeloc.metrics.scorers import Scorer

__all__ = [
    "MEASURES",
    "Scorer",
    "colour_spread",
    "contrast",
    "denoising_loss",
    "distance_by_lag",
    "drift",
    "drift_curve",
    "dynamic_degree",
    "flicker",
    "frame_features",
    "frechet_distance",
    "frozen_share",
    "loop_strength",
    "motion_features",
    "motion_smoothness",
    "pairs_with_texture",
    "sharpness",
]
