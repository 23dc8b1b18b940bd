"""Means with standard errors, and rank correlation."""

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
