"""A small Cosmos 2.5 Transfer: a transformer, and the ControlNet beside it, real classes of diffusers.

The ControlNet resizes its padding mask with torchvision, which freeloc does not need otherwise. Where it is not
installed, the same nearest pixels come from torch.
"""

from types import SimpleNamespace

import torch
from diffusers import CosmosControlNetModel
from diffusers.models.controlnets import controlnet_cosmos
from freeloc_adapters.examples.cosmos import cosmos

from freeloc.testing import Example, noise, random_model

if not hasattr(controlnet_cosmos, "transforms"):
    controlnet_cosmos.transforms = SimpleNamespace(
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
        functional=SimpleNamespace(
            resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size, mode=interpolation)
        ),
    )

SCALE = (20 / 24, 2.0, 2.0)
EVERY = 2


def controlnet(blocks=2):
    """A small one."""
    sizes = {
        "n_controlnet_blocks": blocks,
        "in_channels": 6,  # the control, its mask, and the padding mask
        "latent_channels": 6,
        "model_channels": 64,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "adaln_lora_dim": 8,
        "max_size": (32, 32, 32),
        "rope_scale": SCALE,
        "encoder_hidden_states_channels": 16,
    }
    return random_model(lambda: CosmosControlNetModel(**sizes))


def inputs(frames, height, width, batch):
    """Inputs of the ControlNet for a grid of this size, at 30 frames per second."""
    return {
        "controls_latents": noise(batch, 4, frames, 2 * height, 2 * width),
        "latents": noise(batch, 4, 1, 2 * height, 2 * width).expand(-1, -1, frames, -1, -1),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, 3, 16),
        "condition_mask": torch.zeros(batch, 1, frames, 2 * height, 2 * width),
        "padding_mask": torch.zeros(1, 1, 2 * height, 2 * width),
        "fps": 30,
    }


EXAMPLES = [Example("cosmos-controlnet", controlnet, inputs, video="controls_latents")]


def pipeline(layers=4, blocks=2, every=EVERY):
    """Both, as in the components of a pipeline."""
    sizes = {"num_layers": layers, "extra_pos_embed_type": None, "rope_scale": SCALE, "in_channels": 5}
    transformer = cosmos(**sizes, controlnet_block_every_n=every)
    return SimpleNamespace(components={"controlnet": controlnet(blocks), "transformer": transformer})


def run(pipe, frames, height=2, width=3, batch=2):
    """One step of the pipeline: the output of the ControlNet goes to the transformer."""
    transformer, control = pipe.components["transformer"], pipe.components["controlnet"]
    given = inputs(frames, height, width, batch) | {"latents": noise(batch, 4, frames, 2 * height, 2 * width)}
    with torch.no_grad():
        (samples,) = control(**given, return_dict=False)
        shared = {name: given[name] for name in ("timestep", "encoder_hidden_states", "condition_mask", "fps")}
        return transformer(given["latents"], block_controlnet_hidden_states=samples, **shared, return_dict=False)[0]
