"""Small random models, and inputs for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """A small random model that an adapter describes, and inputs for it.

    Args:
        adapter: name of the adapter.
        model: makes the model, with the same weights each time, and imports the model library. It must be small: the
            suite calls it dozens of times.
        inputs: (frames, height, width, batch) in tokens -> arguments of the model's forward, the same ones each time.
        name: name of the example, if an adapter has several.
        video: name of the argument that holds the noisy video; or of an item or attribute of one, ``"x.0"``.
        axes: einops names of the video's axes, ``f h w`` among them (in parentheses if tokens are packed); by default
            those of the adapter's grid.
        tolerance: largest error of rotations and attention, as a share of the largest value, for a model that computes
            them less exactly than float32: see also `Adapter.rounding`. The suite requires that the rotation and the
            correction are at least ten times as large.
        expected_failures: checks that fail because of the model, each with the reason.
        run: (model, inputs) -> output, where the model is not run by calling it, but by a function (`Adapter.run_by`).
    """

    adapter: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int, int, int, int], dict[str, Any]]
    name: str = ""
    video: str = "hidden_states"
    axes: str = ""
    tolerance: float = 1e-4
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    run: Callable[[nn.Module, Mapping[str, Any]], Any] | None = None

    def output(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """What the model returns for these inputs."""
        return model(**inputs) if self.run is None else self.run(model, inputs)

    @property
    def label(self) -> str:
        """The example's name, or its adapter's."""
        return self.name or self.adapter


def random_model(make: Callable[[], nn.Module], seed: int = 0, sharpness: float = 3.0) -> nn.Module:
    """A model with random weights, ready to run, whose attention is far from uniform.

    Args:
        make: constructs the model.
        seed: seed of the weights. The global random state is left unchanged.
        sharpness: factor on the weights of query and key projections, so that attention is far from uniform.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU alone: torch.manual_seed also seeds GPUs
        model = make().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.1)  # a projection that starts at zero hides what comes before it
            if any(part in name for part in (".to_q.", ".to_k.", ".add_q", ".add_k", "_q_norm", "_k_norm")):
                parameter.mul_(sharpness)
    return model


def noise(*shape: int) -> Tensor:
    """Standard normal numbers, the same ones for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
