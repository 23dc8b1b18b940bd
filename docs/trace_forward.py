"""Prints which files of freeloc a steady forward of a patched model enters, and how often it changes files.

    python docs/trace_forward.py

Steady: the second forward of a length, when all that can be made once was made. The model is a small random Wan of four
layers that get VRPR, TSA, both, and nothing. The folder `attention/`, to which all others lead, counts as one file.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import freeloc

PACKAGE = str(Path(freeloc.__file__).parent)
LAYERS = {"vrpr": [0], "tsa": [1], "vrpr+tsa": [2], "none": [3]}


def steady_forward() -> list[str]:
    """The file of each call of a function of freeloc, in order; for attention itself, its folder."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    small: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4}
    model = WanTransformer3DModel(num_layers=4, text_dim=16, freq_dim=32, ffn_dim=64, **small).eval()
    profile = freeloc.default_profile(model, trained_latent_frames=4).model_copy(update={"layers": LAYERS})
    inputs = {
        "hidden_states": torch.randn(1, 4, 9, 4, 6),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 3, 16),
    }
    files: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(PACKAGE):
            name = path.removeprefix(f"{PACKAGE}/")
            files.append("attention/" if name.startswith("attention/") else name)

    with torch.no_grad(), freeloc.patch(model, profile):
        model(**inputs)
        sys.setprofile(note)
        try:
            model(**inputs)
        finally:
            sys.setprofile(None)
    return files


def switches(files: list[str]) -> int:
    """How often a call is in another file than the call before."""
    return sum(one != other for one, other in itertools.pairwise(files))


def main() -> None:
    """Print the table."""
    files = steady_forward()
    for name, calls in Counter(files).most_common():
        sys.stdout.write(f"{calls:5} calls  {name}\n")
    sys.stdout.write(f"{len(set(files))} files, {switches(files)} switches between files, {len(files)} calls\n")


if __name__ == "__main__":
    main()
