"""Trains the second tiny model: ``python -m freeloc.tiny.film.train``, after `freeloc.tiny.film.footage`.

It resumes from its checkpoint if there is one.
"""

import functools
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from freeloc.tiny.film.footage import FRAMES, crops, shots, split
from freeloc.tiny.film.model import (
    TRAINED_FRAMES,
    load_transformer,
    new_transformer,
    no_text,
    rotary_tables,
    save_weights,
    scheduler,
)
from freeloc.tiny.training import Stage, Task, main


@functools.cache
def _film() -> tuple[Tensor, list[range]]:
    """The frames of the film, and the shots for training."""
    frames = load_file(FRAMES)["frames"]
    return frames, split(shots(frames))["train"]


_alphas = functools.cache(lambda: scheduler().alphas_cumprod.float())
_tables = functools.cache(rotary_tables)


def diffusion_loss(
    transformer: CogVideoXTransformer3DModel, frames: int, batch: int, generator: torch.Generator
) -> Tensor:
    """Predict alpha noise - sigma latents at a uniform timestep: v-prediction (arXiv 2202.00512)."""
    latents = crops(*_film(), frames, batch, generator)
    noise = torch.randn(latents.shape, generator=generator)
    timestep = torch.randint(len(_alphas()), (batch,), generator=generator)
    alpha = _alphas()[timestep].sqrt()[:, None, None, None, None]
    sigma = (1 - _alphas()[timestep]).sqrt()[:, None, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        predicted = transformer(
            alpha * latents + sigma * noise,
            no_text(batch),
            timestep,
            image_rotary_emb=_tables(frames),
            return_dict=False,
        )[0]
    loss: Tensor = (predicted.float() - (alpha * noise - sigma * latents)).square().mean()
    return loss


TASK = Task(
    new_transformer,
    load_transformer,
    save_weights,
    diffusion_loss,
    blocks="transformer_blocks.",
    stages=(Stage(5, 32, 1000), Stage(TRAINED_FRAMES, 12, 6000)),
    folder=Path("runs/film"),
)

if __name__ == "__main__":
    main(TASK, __doc__)
