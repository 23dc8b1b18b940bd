"""A small classifier of the shape in a frame and its colour: ``python -m freeloc.tiny.judge`` trains it."""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from freeloc.tiny.synthetic import COLOURS, PROMPTS, SHAPES, clips

WEIGHTS = Path(__file__).parent / "judge.safetensors"


class Judge(nn.Module):
    """Classifies frames (count, 3, height, width) in 0..1: logits of colours (count, 6) and of shapes (count, 5)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        self.layers = nn.Sequential()
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            self.layers.append(nn.Conv2d(before, after, 3, stride=1 if index == 0 else 2, padding=1))
            self.layers.append(nn.BatchNorm2d(after))
            self.layers.append(nn.ReLU())
        self.layers.append(nn.Conv2d(widths[-1], 64, 3, padding=1))
        self.head = nn.Linear(64, len(COLOURS) + len(SHAPES))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        found: Tensor = self.head(self.layers(frames).amax(dim=(2, 3)))
        return found[:, : len(COLOURS)], found[:, len(COLOURS) :]


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
    )
    return judge.eval().requires_grad_(False)


def labels(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Index of the colour and of the shape of each prompt.

    >>> labels(["red ring fast", "green disc slow"])
    (tensor([0, 1]), tensor([3, 0]))
    """
    colours, shapes, _ = zip(*(prompt.split() for prompt in prompts), strict=True)
    return torch.tensor([list(COLOURS).index(c) for c in colours]), torch.tensor(
        [list(SHAPES).index(s) for s in shapes]
    )


def train(steps: int = 700, batch: int = 128) -> Judge:
    """Train a judge on single frames, slightly noisy or blurred like sampled videos."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(steps):
        prompts = [PROMPTS[i] for i in torch.randint(len(PROMPTS), (batch,), generator=generator)]
        frames = clips(prompts, 1, generator)[:, :, 0]
        blur = torch.rand(batch, 1, 1, 1, generator=generator) * 0.5
        frames = torch.lerp(frames, F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False), blur)
        frames = frames + 0.03 * torch.randn(frames.shape, generator=generator)
        losses = [
            F.cross_entropy(found, expected) for found, expected in zip(judge(frames), labels(prompts), strict=True)
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return judge.eval().requires_grad_(False)


if __name__ == "__main__":
    trained = train()
    save_file(trained.state_dict(), WEIGHTS)
