"""Trains the tiny model: ``python -m freeloc.tiny.train``. It resumes from its checkpoint if there is one.

The first stage uses short clips, so that a batch has many different landscapes. The second uses clips of the trained
length. Training requires a PyTorch with ``torch.optim.Muon``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.files import replacing
from freeloc.tiny.model import TRAINED_FRAMES, load_transformer, new_transformer, save_weights
from freeloc.tiny.synthetic import PROMPTS, clips, prompt_embeds, to_latents


class Stage(NamedTuple):
    """A stage of training: a number of steps on batches of clips of one length."""

    frames: int
    batch: int
    steps: int


STAGES = (Stage(5, 32, 1500), Stage(TRAINED_FRAMES, 8, 6000))


def draw_batch(frames: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean latents (batch, 3, frames, height, width) and their prompt tokens, of which one in ten is unconditional."""
    picks = torch.randint(len(PROMPTS), (batch,), generator=generator)
    prompts = [PROMPTS[i] for i in picks]
    dropped = torch.rand(batch, generator=generator) < 0.1
    kept = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
    return to_latents(clips(prompts, frames, generator)), prompt_embeds(kept)


def flow_matching_loss(
    transformer: WanTransformer3DModel, latents: Tensor, embeds: Tensor, generator: torch.Generator
) -> Tensor:
    """Rectified flow: predict noise - latents at a logit-normal time (arXiv 2403.03206, section 3)."""
    noise = torch.randn(latents.shape, generator=generator)
    sigma = torch.sigmoid(0.4 + 1.2 * torch.randn(len(latents), generator=generator))
    mixed = torch.lerp(latents, noise, sigma[:, None, None, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        predicted = transformer(mixed, sigma * 1000, embeds, return_dict=False)[0]
    loss: Tensor = (predicted.float() - (noise - latents)).square().mean()
    return loss


def make_optimizers(transformer: WanTransformer3DModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all other parameters, with the peak learning rates."""
    parameters = dict(transformer.named_parameters())
    matrices = [name for name, tensor in parameters.items() if name.startswith("blocks.") and tensor.ndim == 2]
    rest = [name for name in parameters if name not in matrices]
    return [
        torch.optim.Muon(
            [parameters[name] for name in matrices], lr=3e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW([parameters[name] for name in rest], lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def lr_scale(step: int, steps: int, decay: int, warmup: int = 200) -> float:
    """Linear warm-up, plateau, linear decay over the last `decay` steps.

    >>> [lr_scale(step, steps=1000, decay=400) for step in (99, 500, 800)]
    [0.5, 1.0, 0.5]
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)


@torch.no_grad()
def update_average(average: dict[str, Tensor], transformer: WanTransformer3DModel, keep: float) -> None:
    """Update the exponential moving average of the weights."""
    for name, tensor in transformer.state_dict().items():
        average[name].lerp_(tensor, 1 - keep)


def save(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint atomically, and the averaged weights beside it."""
    with replacing(checkpoint) as part:
        torch.save(state, part)
    save_weights(state["average"], checkpoint.with_name("weights.safetensors"))


def train(stages: tuple[Stage, ...], folder: Path, decay: int, start: Path | None = None, seed: int = 0) -> None:
    """Train, writing checkpoint.pt, log.jsonl and weights.safetensors (the moving average) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    transformer = load_transformer(start).requires_grad_(True) if start else new_transformer()
    optimizers = make_optimizers(transformer.train())
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    average = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    first, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists() and start:
        raise FreelocError(f"{checkpoint} exists: remove --start to resume from it, or give another --folder")
    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint)
        transformer.load_state_dict(saved["transformer"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average, first, seconds = saved["average"], saved["step"], saved["seconds"]
    transformer.compile()
    schedule = [stage for stage in stages for _ in range(stage.steps)]
    losses: list[float] = []
    started = time.perf_counter() - seconds
    for step in range(first, len(schedule)):
        stage = schedule[step]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        scale = lr_scale(step, len(schedule), decay)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
        loss = flow_matching_loss(transformer, *draw_batch(stage.frames, stage.batch, generator), generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        update_average(average, transformer, keep=min(0.998, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == len(schedule):
            seconds = time.perf_counter() - started
            mean = round(sum(losses) / len(losses), 5)
            line = {"step": step + 1, "frames": stage.frames, "loss": mean, "seconds": round(seconds)}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            losses.clear()
            state = {"transformer": transformer.state_dict(), "average": average, "step": step + 1, "seconds": seconds}
            save(checkpoint, state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]})


def _stage(text: str) -> Stage:
    return Stage(*(int(number) for number in text.split(":")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=_stage, nargs="+", default=STAGES, help="frames:batch:steps of each stage")
    parser.add_argument("--decay", type=int, default=1500, help="steps of the final decay of the learning rate")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--seed", type=int, default=0, help="use another one when you train further")
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny"))
    arguments = parser.parse_args()
    train(tuple(arguments.stages), arguments.folder, arguments.decay, arguments.start, arguments.seed)
