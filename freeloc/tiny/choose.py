"""Chooses a policy for each layer of the tiny model: ``python -m freeloc.tiny.choose``.

On true long clips that the bench does not use, the denoising loss with VRPR on every layer is compared with the loss
after one layer gets another policy instead. Each layer takes the policy with the lowest loss, if it is lower than
VRPR's by more than three standard errors of the paired difference (there are 24 such comparisons); else it keeps VRPR.
"""

import argparse
import functools
import json
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import freeloc
from freeloc.profile import POLICIES, Policy, Provenance
from freeloc.profile_files import load_profile
from freeloc.tiny.model import load_transformer, long_frames
from freeloc.tiny.parallel import parallel
from freeloc.tiny.scores import denoising_loss, mean_and_error
from freeloc.tiny.settings import LAYER_LOSSES, with_layers
from freeloc.tiny.world import PROMPTS, clips, to_latents

SEED = 500_000
"""Of the clips and the noise: the bench uses others."""

Table = dict[Policy, list[float]]
"""A number per policy and layer."""


def losses(policies: list[Policy], count: int, times: int) -> Tensor:
    """Denoising loss with these policies on true clips of `times` trained lengths, (clips,)."""
    transformer, profile = _transformer(), with_layers(load_profile("tiny-wan"), policies)
    found = []
    for first in range(0, count, 4):
        generator = torch.Generator().manual_seed(SEED + first)
        picks = torch.randint(len(PROMPTS), (min(4, count - first),), generator=generator)
        prompts = [PROMPTS[index] for index in picks]
        latents = to_latents(clips(prompts, long_frames(times), generator))
        with freeloc.patch(transformer, profile):
            found.append(denoising_loss(transformer, latents, prompts, generator))
    return torch.cat(found)


_transformer = functools.cache(load_transformer)


def measure(count: int, times: int, workers: int = 1) -> tuple[Table, Table]:
    """By policy, per layer: how much the loss rises when that layer alone gets it, and the standard error of that."""
    layers = load_profile("tiny-wan").model.layers
    base: list[Policy] = ["vrpr"] * layers
    tried = [(policy, layer) for policy in POLICIES if policy != "vrpr" for layer in range(layers)]
    runs = [base, *([*base[:layer], policy, *base[layer + 1 :]] for policy, layer in tried)]
    with parallel(workers) as run_all:
        found = list(tqdm(run_all(losses, runs, repeat(count), repeat(times)), total=len(runs), unit="run"))
    rise: Table = {"vrpr": [0.0] * layers}
    error: Table = {"vrpr": [0.0] * layers}
    for (policy, _), changed in zip(tried, found[1:], strict=True):
        mean, standard_error = mean_and_error((changed - found[0]).tolist())
        rise.setdefault(policy, []).append(mean)
        error.setdefault(policy, []).append(standard_error)
    return rise, error


def choose(rise: Table, error: Table) -> list[Policy]:
    """The policy of each layer.

    >>> choose({"vrpr": [0.0, 0.0], "tsa": [-0.3, -0.3]}, {"vrpr": [0.0, 0.0], "tsa": [0.05, 0.2]})
    ['tsa', 'vrpr']
    """
    chosen: list[Policy] = []
    for layer in range(len(rise["vrpr"])):
        lower: list[Policy] = [policy for policy in rise if rise[policy][layer] < -3 * error[policy][layer]]
        chosen.append(min(lower, key=lambda policy: rise[policy][layer], default="vrpr"))
    return chosen


def main() -> None:
    """Write the profile and the losses that it rests on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--times", type=int, default=4, help="length of the clips, in trained lengths")
    parser.add_argument("--profile", type=Path, default=Path("profiles/tiny-wan.json"), help="file to write")
    parser.add_argument("--workers", type=int, default=1, help="processes; two or more have one thread each")
    arguments = parser.parse_args()
    if arguments.clips < 2:
        parser.error("expected at least 2 clips, for a standard error")
    rise, error = measure(arguments.clips, arguments.times, arguments.workers)
    LAYER_LOSSES.write_text(json.dumps({"rise": rise, "error": error}, indent=1) + "\n")
    provenance = Provenance(
        kind="probed",
        source=f"python -m freeloc.tiny.choose --clips {arguments.clips} --times {arguments.times}",
        notes="Settings as published for Wan2.1, which was trained on as many latent frames. Layers by the denoising "
        "loss on true clips, one layer changed at a time: see docs/long-video-bench.md.",
    )
    profile = with_layers(load_profile("tiny-wan"), choose(rise, error))
    profile.model_copy(update={"provenance": provenance}).save(arguments.profile)


if __name__ == "__main__":
    main()
