"""Small models for the CPU, by name, with profiles, lengths and inputs. Any checkout of freeloc can run them.

A checkout needs `freeloc.load_profile` and the profiles "tiny-wan" and "wan2.1", in whatever files they are.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import freeloc

WAN = {"in_channels": 16, "out_channels": 16, "freq_dim": 256, "cross_attn_norm": True, "rope_max_seq_len": 1024}
"""What is common to the random models, as in Wan 2.1."""


@dataclass(frozen=True)
class Subject:
    """A model to time.

    Args:
        name: name for the tables.
        model: makes the model, always with the same weights.
        profile: what `freeloc.patch` gets.
        size: channels, rows and columns of the latents.
        tokens_per_frame: tokens of one latent frame.
        text: text tokens and their channels.
        trained: latent frames of the training clips.
        lengths: latent frames to time.
    """

    name: str
    model: Callable[[], Any]
    profile: Any
    size: tuple[int, int, int]
    tokens_per_frame: int
    text: tuple[int, int]
    trained: int
    lengths: tuple[int, ...]

    def inputs(self, frames: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """The arguments of a forward: batch 1, always the same numbers."""
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, self.size[0], frames, *self.size[1:], generator=generator)
        text = torch.randn(1, *self.text, generator=generator)
        timestep = torch.tensor([500.0])
        return {"hidden_states": latents.to(dtype), "encoder_hidden_states": text.to(dtype), "timestep": timestep}


def tiny_wan(quick: bool = False) -> Subject:
    """The tiny trained model that comes with freeloc, with the paper's recipe: in older checkouts its profile."""
    from freeloc.tiny.model import load_transformer

    recipe = Path(freeloc.__file__).parent / "tiny" / "layer_choice.json"
    profile = str(recipe) if recipe.exists() else "tiny-wan"
    text = (8, load_transformer().config.text_dim)
    return Subject("tiny-wan", load_transformer, profile, (3, 20, 28), 35, text, 21, (21, 41 if quick else 81))


def small_wan(quick: bool = False) -> Subject:
    """A small random Wan, whose attention takes about as long as what is around it, with VRPR and TSA on all layers."""
    from diffusers import WanTransformer3DModel

    heads = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 4, "ffn_dim": 256}
    config = heads | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32}

    def make() -> Any:
        torch.manual_seed(0)
        return WanTransformer3DModel(**config).eval().requires_grad_(False)

    profile = freeloc.default_profile(make(), "vrpr+tsa", trained_latent_frames=21)
    size = (4, 4, 6) if quick else (4, 12, 20)
    return Subject("small random Wan", make, profile, size, size[1] * size[2] // 4, (8, 16), 21, (21, 41))


def random_wan(layers: int, rows: int, columns: int, quick: bool = False, heads: int = 12) -> Subject:
    """A Wan of the proportions of Wan2.1-T2V-1.3B but with few layers and random weights, in float32.

    The first half of the layers has VRPR and TSA, the others VRPR; in the published profile it is 17 of 30.
    """
    from diffusers import WanTransformer3DModel

    heads, text, rows, columns = (2, 16, 2, 3) if quick else (heads, 4096, rows, columns)
    ffn = 64 if quick else 8960 * heads // 12
    config = WAN | {"num_attention_heads": heads, "attention_head_dim": 128, "text_dim": text, "ffn_dim": ffn}

    def make() -> Any:
        torch.manual_seed(0)
        return WanTransformer3DModel(**config, num_layers=layers).eval().requires_grad_(False)

    name, size = f"Wan of the 1.3B proportions, {layers} layers", (16, 2 * rows, 2 * columns)
    return Subject(
        name, make, _first_layers(layers, heads), size, rows * columns, (512, text), 21, (21, 41 if quick else 81)
    )


def _first_layers(layers: int, heads: int) -> Any:
    """The published profile of Wan 2.1 for a model with fewer layers."""
    found = freeloc.load_profile("wan2.1").model_dump(mode="json", exclude_unset=True)
    found["model"] |= {"name": f"{layers} layers like Wan2.1-T2V-1.3B's", "layers": layers, "heads": heads}
    sparse = list(range((layers + 1) // 2))
    found["layers"] = {"vrpr+tsa": sparse, "vrpr": [layer for layer in range(layers) if layer not in sparse]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "profile.json")
        path.write_text(json.dumps(found))
        return freeloc.load_profile(path)


MODELS: dict[str, Callable[[bool], Subject]] = {
    "tiny-wan": tiny_wan,
    "small": small_wan,
    "wan-60": lambda quick: random_wan(2, 6, 10, quick),
    "wan-240": lambda quick: random_wan(2, 12, 20, quick),
}
"""The models by name; the functions get whether sizes are to be tiny."""
