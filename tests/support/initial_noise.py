"""FreeNoise's noise in small pipelines: an oracle of its own, and runs of the pipelines with it."""

import contextlib
import hashlib
import inspect
import sys

import einops
import torch
from pipelines import PIPELINES

import freeloc
from freeloc.plans.baselines import reschedule_noise
from freeloc.registry import registry

TRAINED = 4
FREENOISE = registry().methods.get("freenoise")


def seed_of(kept):
    """The documented seed: of the bytes of the frames (batch, channels, frames, height, width) that stay."""
    return int.from_bytes(hashlib.sha256(kept.contiguous().view(torch.uint8).numpy().tobytes()).digest()[:7], "big")


def oracle(noise, axes="b c f h w", patch_frames=1, first=0):
    """FreeNoise's noise, each sample by itself, from that of a pipeline."""
    video = einops.rearrange(noise, f"{axes} -> b c f h w").clone()
    window, start = TRAINED * patch_frames, first * patch_frames
    for sample in range(len(video)):
        own = video[sample : sample + 1, :, start:]
        generator = torch.Generator().manual_seed(seed_of(own[:, :, :window]))
        video[sample : sample + 1, :, start:] = reschedule_noise(own, window, generator)
    return einops.rearrange(video, f"b c f h w -> {axes}")


@contextlib.contextmanager
def drawing(pipe, change):
    """Change what the file of the pipeline draws; what its VAE draws is drawn in another file."""
    module = sys.modules[inspect.unwrap(type(pipe).prepare_latents).__module__]
    before = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: change(before(*args, **kwargs))
    try:
        yield
    finally:
        module.randn_tensor = before


def first_input(small, pipe, **changes):
    """The first tensor that reaches a transformer, and the latents of the videos."""
    seen = []

    def note(model, args, kwargs):
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return seen, small.call(pipe, **changes)
    finally:
        hook.remove()


def profile_of(pipe, trained=TRAINED):
    return freeloc.default_profile(pipe, "none", trained_latent_frames=trained)


def patched(pipe, trained=TRAINED, **options):
    return freeloc.patch(pipe, profile_of(pipe, trained), **{"method": "freenoise"} | options)


def sample(pipe, **changes):
    return PIPELINES["wan"].call(pipe, **changes)


def drawn(batch=1, frames=9, seed=0):
    """What the small pipeline of Wan draws."""
    return torch.randn(batch, 4, frames, 4, 6, generator=torch.Generator().manual_seed(seed))
