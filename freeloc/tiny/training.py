"""The training of a tiny model: stages, optimizers, moving average, and a checkpoint from which it resumes.

It requires a PyTorch with ``torch.optim.Muon``.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freeloc.errors import FreelocError
from freeloc.files import replacing


class Stage(NamedTuple):
    """A stage of training: a number of steps on batches of clips of one length."""

    frames: int
    batch: int
    steps: int


class Task(NamedTuple):
    """What is trained.

    Args:
        new: makes the model with random weights.
        load: loads a trained model from a path.
        save: (averaged weights, path) writes weights.
        loss: (model, frames, batch, generator) -> the loss of a random batch.
        blocks: with what the names of the weights of the transformer's blocks begin.
        stages: the stages by default.
        folder: where results are written by default.
    """

    new: Callable[[], nn.Module]
    load: Callable[[Path], nn.Module]
    save: Callable[[dict[str, Tensor], Path], None]
    loss: Callable[[Any, int, int, torch.Generator], Tensor]
    blocks: str
    stages: tuple[Stage, ...]
    folder: Path


def make_optimizers(transformer: nn.Module, blocks: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all other parameters, with the peak learning rates."""
    parameters = dict(transformer.named_parameters())
    matrices = [name for name, tensor in parameters.items() if name.startswith(blocks) and tensor.ndim == 2]
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
def update_average(average: dict[str, Tensor], transformer: nn.Module, keep: float) -> None:
    """Update the exponential moving average of the weights."""
    for name, tensor in transformer.state_dict().items():
        average[name].lerp_(tensor, 1 - keep)


def _save(task: Task, checkpoint: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint atomically, and the averaged weights beside it."""
    with replacing(checkpoint) as part:
        torch.save(state, part)
    task.save(state["average"], checkpoint.with_name("weights.safetensors"))


def train(
    task: Task, stages: tuple[Stage, ...], folder: Path, decay: int, start: Path | None = None, seed: int = 0
) -> None:
    """Train, writing checkpoint.pt, log.jsonl and weights.safetensors (the moving average) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    transformer = task.load(start).requires_grad_(True) if start else task.new()
    optimizers = make_optimizers(transformer.train(), task.blocks)
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
        loss = task.loss(transformer, stage.frames, stage.batch, generator)
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
            _save(task, checkpoint, state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]})


def _stage(text: str) -> Stage:
    return Stage(*(int(number) for number in text.split(":")))


def main(task: Task, description: str | None) -> None:
    """Train with the settings of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--stages", type=_stage, nargs="+", default=task.stages, help="frames:batch:steps of each")
    parser.add_argument("--decay", type=int, default=1500, help="steps of the final decay of the learning rate")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--seed", type=int, default=0, help="use another one when you train further")
    parser.add_argument("--folder", type=Path, default=task.folder)
    arguments = parser.parse_args()
    train(task, tuple(arguments.stages), arguments.folder, arguments.decay, arguments.start, arguments.seed)
