"""Trains the tiny model: ``python -m freeloc.tiny.train --steps 8000``. Resumes from its checkpoint when there is one."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from freeloc.tiny.model import TRAINED_FRAMES, new_transformer, save_weights
from freeloc.tiny.world import PROMPTS, clips, prompt_embeds, to_latents


def draw_batch(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean latents (batch, 3, frames, height, width) and their prompt tokens, one in ten of them unconditional."""
    picks = torch.randint(len(PROMPTS), (batch,), generator=generator)
    prompts = [PROMPTS[i] for i in picks]
    dropped = torch.rand(batch, generator=generator) < 0.1
    kept = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    return to_latents(clips(prompts, TRAINED_FRAMES, generator)), prompt_embeds(kept)


def flow_matching_loss(
    transformer: WanTransformer3DModel, latents: Tensor, embeds: Tensor, generator: torch.Generator
) -> Tensor:
    """Rectified flow: predict noise - latents at a logit-normal time (Esser et al. 2024, arXiv 2403.03206, section 3)."""
    noise = torch.randn(latents.shape, generator=generator)
    sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(len(latents), generator=generator))
    mixed = torch.lerp(latents, noise, sigma[:, None, None, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        predicted = transformer(mixed, sigma * 1000, embeds, return_dict=False)[0]
    return (predicted.float() - (noise - latents)).square().mean()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, decay_share: float = 0.4) -> float:
    """Linear warm-up, plateau, linear decay over the last `decay_share` of the run."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (decay_share * steps))


@torch.no_grad()
def update_average(average: dict[str, Tensor], transformer: WanTransformer3DModel, keep: float) -> None:
    """Move the exponential moving average of the weights one step."""
    for name, tensor in transformer.state_dict().items():
        average[name].lerp_(tensor, 1 - keep)


def train(steps: int, folder: Path, batch: int = 16, peak: float = 1.2e-3, seed: int = 0) -> None:
    """Train up to `steps` steps, writing checkpoint.pt, log.jsonl and weights.safetensors (the average) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    transformer = new_transformer().train()
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    average = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    first, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint)
        transformer.load_state_dict(saved["transformer"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first, seconds = saved["average"], saved["step"], saved["seconds"]
    transformer.compile()
    losses: list[float] = []
    started = time.perf_counter() - seconds
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = flow_matching_loss(transformer, *draw_batch(batch, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        update_average(average, transformer, keep=min(0.999, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - started
            line = {"step": step + 1, "loss": round(sum(losses) / len(losses), 5), "seconds": round(seconds)}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            losses.clear()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"transformer": transformer.state_dict(), "optimizer": optimizer.state_dict()}
            part = checkpoint.with_suffix(".part")
            torch.save(state | {"average": average, "step": step + 1, "seconds": seconds}, part)
            part.replace(checkpoint)
            save_weights(average, folder / "weights.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"))
    arguments = parser.parse_args()
    train(arguments.steps, arguments.folder)
