"""Trains the tiny model: ``python -m freeloc.tiny.train``. It resumes from its checkpoint if there is one.

The first stage uses short clips, so that a batch has many different landscapes. The second uses clips of the trained
length.
"""

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from freeloc.tiny.model import TRAINED_FRAMES, load_transformer, new_transformer, save_weights
from freeloc.tiny.synthetic import PROMPTS, clips, prompt_embeds, to_latents
from freeloc.tiny.training import Stage, Task, main


def draw_batch(frames: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean latents (batch, 3, frames, height, width) and their prompt tokens, of which one in ten is unconditional."""
    picks = torch.randint(len(PROMPTS), (batch,), generator=generator)
    prompts = [PROMPTS[i] for i in picks]
    dropped = torch.rand(batch, generator=generator) < 0.1
    kept = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    return to_latents(clips(prompts, frames, generator)), prompt_embeds(kept)


def flow_matching_loss(
    transformer: WanTransformer3DModel, frames: int, batch: int, generator: torch.Generator
) -> Tensor:
    """Rectified flow: predict noise - latents at a logit-normal time (arXiv 2403.03206, section 3)."""
    latents, embeds = draw_batch(frames, batch, generator)
    noise = torch.randn(latents.shape, generator=generator)
    sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(len(latents), generator=generator))
    mixed = torch.lerp(latents, noise, sigma[:, None, None, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        predicted = transformer(mixed, sigma * 1000, embeds, return_dict=False)[0]
    loss: Tensor = (predicted.float() - (noise - latents)).square().mean()
    return loss


TASK = Task(
    new_transformer,
    load_transformer,
    save_weights,
    flow_matching_loss,
    blocks="blocks.",
    stages=(Stage(5, 32, 1500), Stage(TRAINED_FRAMES, 8, 6000)),
    folder=Path("runs/tiny"),
)

if __name__ == "__main__":
    main(TASK, __doc__)
