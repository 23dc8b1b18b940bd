"""Means with standard errors, how many of them a difference needs, and rank correlation."""

import math

import torch
from torch import Tensor


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over samples, and its standard error; NaN for one sample.

    >>> mean_and_error(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    (tensor([2., 2.]), tensor([1., 0.]))

    Args:
        values: (..., samples).
    """
    count = values.shape[-1]
    mean = values.mean(dim=-1)
    return mean, values.std(dim=-1) / count**0.5 if count > 1 else torch.full_like(mean, torch.nan)


def threshold(errors: float, samples: int) -> float:
    """How many standard errors of a mean over few samples are as improbable as `errors` of a mean over many.

    The standard error of few samples is itself uncertain (Student's t): beyond 3 of them lies a mean of 2 samples
    without any effect in one case of 5. This is the approximation of Wallace (1959), Annals of Mathematical Statistics
    30, which is a little too large for fewer than 5 samples.

    >>> [round(threshold(3, samples), 1) for samples in (2, 4, 8, 16, 48)]
    [830.7, 9.8, 4.6, 3.6, 3.2]

    Args:
        errors: number of standard errors of a mean over many samples.
        samples: number of samples, 2 or more.
    """
    free = samples - 1
    scaled = errors * (8 * free + 3) / (8 * free + 1)
    return math.sqrt(free * math.expm1(min(scaled**2 / free, 700)))  # or it overflows


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two measures of the same things: 1 for the same order, -1 for the opposite one.

    >>> rank_correlation(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.3, 0.2]))
    0.5
    """
    ranks = torch.stack([_ranks(first.flatten()), _ranks(second.flatten())])
    return round(float(torch.corrcoef(ranks)[0, 1]), 6)


def _ranks(values: Tensor) -> Tensor:
    """Ranks, with the mean rank for equal values."""
    return ((values[:, None] > values).double().sum(dim=1) + (values[:, None] >= values).double().sum(dim=1)) / 2
