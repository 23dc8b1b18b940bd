"""SkyReels-V2, ChronoEdit, Wan-Animate and AnyFlow of diffusers."""

from typing import Any

import torch
from freeloc_adapters.examples import wan
from torch import nn

from freeloc.testing import Example, noise, random_model

SIZES = wan.SIZES | {"num_layers": 2}


def skyreels_v2() -> nn.Module:
    """A small SkyReels-V2."""
    from diffusers import SkyReelsV2Transformer3DModel

    return random_model(lambda: SkyReelsV2Transformer3DModel(**SIZES))


def skyreels_v2_causal() -> nn.Module:
    """A small SkyReels-V2 with causal attention, in the smallest blocks of at least 2 frames that divide the video."""
    model = skyreels_v2()
    model.register_forward_pre_hook(_set_blocks, with_kwargs=True)
    return model


def _set_blocks(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    frames = kwargs["hidden_states"].shape[2]
    model._set_ar_attention(next((size for size in range(2, frames) if frames % size == 0), 1))


def chronoedit() -> nn.Module:
    """A small ChronoEdit."""
    from diffusers import ChronoEditTransformer3DModel

    return random_model(lambda: ChronoEditTransformer3DModel(**SIZES))


def wan_animate() -> nn.Module:
    """A small Wan-Animate."""
    from diffusers import WanAnimateTransformer3DModel

    sizes = SIZES | {
        "in_channels": 12,
        "latent_channels": 4,
        "image_dim": None,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8},
        "motion_encoder_size": 8,
        "motion_style_dim": 8,
        "motion_dim": 2,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    }
    return random_model(lambda: WanAnimateTransformer3DModel(**sizes))


def anyflow() -> nn.Module:
    """A small AnyFlow."""
    from diffusers import AnyFlowTransformer3DModel

    return random_model(lambda: AnyFlowTransformer3DModel(**SIZES))


def wan_animate_inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size, the picture of the character among them."""
    given: dict[str, Any] = wan.inputs(frames, height, width, batch)
    pose = noise(batch, 4, 1, 2 * height, 2 * width)
    return given | {
        "hidden_states": noise(batch, 12, frames, 2 * height, 2 * width),
        "pose_hidden_states": pose.expand(-1, -1, frames - 1, -1, -1),
        "face_pixel_values": noise(batch, 3, 4 * (frames - 1), 8, 8),
    }


def anyflow_inputs(frames: int, height: int, width: int, batch: int) -> dict[str, Any]:
    """Inputs for a grid of this size."""
    given: dict[str, Any] = wan.inputs(frames, height, width, batch)
    timestep = torch.full((batch, frames), 500.0)
    return given | {
        "hidden_states": given["hidden_states"].transpose(1, 2),
        "timestep": timestep,
        "r_timestep": timestep / 2,
    }


EXAMPLES = [
    Example("skyreels-v2", skyreels_v2, wan.inputs),
    Example("skyreels-v2", skyreels_v2_causal, wan.inputs, name="skyreels-v2-causal"),
    Example("chronoedit", chronoedit, wan.inputs),
    Example("wan-animate", wan_animate, wan_animate_inputs),
    Example("anyflow", anyflow, anyflow_inputs),
]
