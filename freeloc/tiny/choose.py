"""Chooses a policy for each layer of the tiny model: ``python -m freeloc.tiny.choose``.

On true long clips that the bench does not use, the denoising loss with VRPR on every layer is compared with the loss
after one layer gets another policy instead. Each layer takes the policy with the lowest loss, if it is lower than
VRPR's by more than two standard errors of the paired difference; else it keeps VRPR.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import freeloc
from freeloc.profile import POLICIES, Policy, Profile, Provenance, load_profile
from freeloc.tiny.model import TRAINED_FRAMES, load_transformer
from freeloc.tiny.scores import SIGMAS, denoising_loss
from freeloc.tiny.settings import LAYER_LOSSES, with_layers
from freeloc.tiny.world import PROMPTS, clips, to_latents

SEED = 500_000
"""Of the clips and the noise: the bench uses others."""


def losses(profile: Profile, transformer: torch.nn.Module, count: int, times: int) -> Tensor:
    """Denoising loss of a profile on true clips of `times` trained lengths, (clips,)."""
    found = []
    for index in range(count):
        generator = torch.Generator().manual_seed(SEED + index)
        prompt = PROMPTS[int(torch.randint(len(PROMPTS), (), generator=generator))]
        latents = to_latents(clips([prompt], times * (TRAINED_FRAMES - 1) + 1, generator))
        with freeloc.patch(transformer, profile):
            found.append(denoising_loss(transformer, latents, [prompt], generator))
    return torch.cat(found)


def choose(count: int, times: int) -> tuple[Profile, dict[str, list[float]], dict[str, list[float]]]:
    """The profile, and by policy the rise of the loss per layer and its standard error."""
    transformer, shipped = load_transformer(), load_profile("tiny-wan")
    layers = shipped.model.layers
    base: list[Policy] = ["vrpr"] * layers
    reference = losses(with_layers(shipped, base), transformer, count, times)
    rise: dict[str, list[float]] = {"vrpr": [0.0] * layers}
    error: dict[str, list[float]] = {"vrpr": [0.0] * layers}
    others = [policy for policy in POLICIES if policy != "vrpr"]
    chosen = list(base)
    for policy, layer in tqdm([(policy, layer) for policy in others for layer in range(layers)], unit="run"):
        changed = losses(with_layers(shipped, [*base[:layer], policy, *base[layer + 1 :]]), transformer, count, times)
        difference = changed - reference
        rise.setdefault(policy, []).append(float(difference.mean()))
        error.setdefault(policy, []).append(float(difference.std() / math.sqrt(count)))
    for layer in range(layers):
        sure = [policy for policy in others if rise[policy][layer] < -2 * error[policy][layer]]
        chosen[layer] = min(sure, key=lambda policy: rise[policy][layer], default="vrpr")
    source = (
        f"python -m freeloc.tiny.choose --clips {count} --times {times}: denoising loss on true clips, one layer "
        f"changed at a time, noise levels {', '.join(map(str, SIGMAS))}"
    )
    notes = "Settings as published for Wan2.1, which was trained on as many latent frames."
    provenance = Provenance(kind="probed", source=source, notes=notes)
    return with_layers(shipped, chosen).model_copy(update={"provenance": provenance}), rise, error


def main() -> None:
    """Write the profile and the losses that it rests on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--times", type=int, default=4, help="length of the clips, in trained lengths")
    parser.add_argument("--profile", type=Path, default=Path("profiles/tiny-wan.json"), help="file to write")
    arguments = parser.parse_args()
    profile, rise, error = choose(arguments.clips, arguments.times)
    profile.save(arguments.profile)
    LAYER_LOSSES.write_text(json.dumps({"rise": rise, "error": error}, indent=1) + "\n")


if __name__ == "__main__":
    main()
