"""How far a cache of cache-dit changes the videos of the tiny model, without freeloc and with it.

python benchmarks/cached.py: the table of docs/how-to/use-with-cache-dit.md, in about 10 minutes on one thread.
"""

import argparse
import logging
import warnings
from typing import Any

import cache_dit
import torch
from torch import Tensor

import freeloc
from freeloc.tiny.model import load_pipeline, noise, pipeline_size
from freeloc.tiny.synthetic import prompt_embeds

COARSE = {"residual_diff_threshold": 0.24}
SETTINGS: list[tuple[dict[str, Any], Any]] = [
    ({"residual_diff_threshold": 0.12}, None),
    (COARSE, None),
    (COARSE | {"max_continuous_cached_steps": 1}, None),
    (COARSE | {"max_warmup_steps": 8}, None),
    (COARSE | {"Bn_compute_blocks": 1}, None),
    (COARSE | {"Fn_compute_blocks": 4}, None),
    (COARSE, cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)),
]


def sample(steps: int, frames: int, settings: Any = None, is_patched: bool = False) -> tuple[Tensor, int]:
    """Latents of one prompt, and the number of attention calls that were corrected."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    if settings is not None:
        options, calibrator = settings
        own = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 4, "num_inference_steps": steps}
        config = cache_dit.DBCacheConfig(**own | options)
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
    patch = freeloc.patch(pipe, profile="tiny-wan") if is_patched else None
    latents = pipe(
        prompt_embeds=prompt_embeds(["red ring fast"]),
        negative_prompt_embeds=prompt_embeds([""]),
        latents=noise([1], frames),
        guidance_scale=3.0,
        num_inference_steps=steps,
        output_type="latent",
        **pipeline_size(frames),
    ).frames
    return latents, patch.report().corrected_calls if patch else 0


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=41, help="latent frames")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    size = arguments.steps, arguments.frames
    direct, (corrected, calls) = sample(*size)[0], sample(*size, is_patched=True)
    print(f"correction {(corrected - direct).abs().mean():.3f}, calls {calls}")
    for settings in SETTINGS:
        alone, (both, calls) = sample(*size, settings)[0], sample(*size, settings, is_patched=True)
        errors = [float((one - other).abs().mean()) for one, other in ((alone, direct), (both, corrected))]
        names = [f"{key}={value}" for key, value in settings[0].items()] + ["TaylorSeer"] * bool(settings[1])
        print(*names, sep=", ", end=": ")
        print(f"calls {calls}, without freeloc {errors[0]:.3f}, with freeloc {errors[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
