"""A small ToyDiT and inputs for it, of any size: what freeloc's conformance suite runs."""

import torch
from torch import nn

from freeloc.testing import Example, noise, random_model


def model() -> nn.Module:
    """With random weights; the model's package is imported here and not above."""
    from freeloc_toy.model import ToyDiT

    return random_model(ToyDiT)


def inputs(frames: int, height: int, width: int, batch: int) -> dict[str, torch.Tensor]:
    """For a grid of so many tokens. The second sample's text is shorter."""
    return {
        "video": noise(batch, frames, 3, 2 * height, 2 * width),
        "text": noise(batch, 4, 5),
        "text_lengths": torch.tensor([4, 2])[:batch],
    }


EXAMPLE = Example("toy", model, inputs, video="video")
