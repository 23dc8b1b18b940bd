"""freeloc's TSA beside LVSA's own SDPA path, in the same small Wan, in the same run, on one CPU thread.

    git clone https://github.com/JiusiServe/LongVideoSparseAttention /tmp/lvsa
    python benchmarks/beside_lvsa.py --lvsa /tmp/lvsa

LVSA (arXiv 2605.31057) is Apache-2.0; nothing of it is part of freeloc. It is installed into the model by its own
function, with the settings of its example for Wan and of its benchmarks: window 12 and first 4 video frames, automatic
rotating keyframes. Its share of pairs is counted in the calls of attention that it really makes. Forwards alternate.
What a forward takes without self-attention is subtracted from all, so that the costs of pairs can be compared.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import options, say_row, write
from models import Subject, random_wan
from overhead import no_self_attention
from timing import Budget, in_rounds, timed
from torch.overrides import TorchFunctionMode

import freeloc

GRIDS = {6: (2, 3), 60: (6, 10), 240: (12, 20)}
LATENT = 4
"""Video frames per latent frame, and a latent pixel is 8 x 8 pixels: Wan's VAE."""


class PairCount(TorchFunctionMode):
    """Counts the pairs of tokens that self-attention computes, in a model whose blocks have `attn1`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pairs = 0
        self._inside = 0
        for block in model.blocks:
            block.attn1.register_forward_pre_hook(lambda *_: self._enter(1))
            block.attn1.register_forward_hook(lambda *_: self._enter(-1))

    def _enter(self, change: int) -> None:
        self._inside += change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and self._inside:
            named = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
            self.pairs += named["query"].shape[-2] * named["key"].shape[-2]
        return func(*args, **(kwargs or {}))


def install_lvsa(model: Any, frames: int, rows: int, columns: int) -> str:
    """Install LVSA by its own function, with the flags that its benchmarks give to its example for Wan; its version."""
    import lvsa
    from lvsa.adapters.wan import WanAdapter
    from lvsa.parallel import install_lvsa_processors

    pipeline = SimpleNamespace(transformer=model, vae_scale_factor_temporal=LATENT, vae_scale_factor_spatial=8)
    flags = {"window_size": 12, "n_first_frames": 4, "key_frame_interval": 16, "flashinfer": False}
    flags |= {"auto_keyframes": True, "rotate_keyframes": True}
    flags |= {"num_frames": LATENT * (frames - 1) + 1, "height": 16 * rows, "width": 16 * columns}
    install_lvsa_processors(pipeline, argparse.Namespace(**flags), rank=0, world=1, adapter=WanAdapter())
    return str(lvsa.__version__)


def counted(model: Any, inputs: dict[str, Any], layers: int, tokens: int) -> float:
    """Share of all pairs that the self-attention of a forward computes."""
    with PairCount(model) as count:
        model(**inputs)
    return count.pairs / (layers * tokens**2)


def rows_of(subject: Subject, grid: tuple[int, int], frames: int, layers: int, repeats: int) -> list[dict[str, Any]]:
    """A row for dense attention, for freeloc's TSA and for LVSA."""
    inputs, tokens = subject.inputs(frames), frames * subject.tokens_per_frame
    dense, tsa, rival = (subject.model() for _ in range(3))
    freeloc.patch(tsa, subject.profile, method="tsa")
    version = install_lvsa(rival, frames, *grid)

    def without() -> object:
        with no_self_attention():
            return dense(**inputs)

    runs: dict[str, Callable[[], object]] = {"none": without}
    runs |= {"dense": lambda: dense(**inputs), "freeloc TSA": lambda: tsa(**inputs), "LVSA": lambda: rival(**inputs)}
    with torch.no_grad():
        times = in_rounds({name: timed(run) for name, run in runs.items()}, repeats)
        plan = freeloc.frame_plan(subject.profile, 0, frames)
        shares = {"dense": 1.0, "freeloc TSA": plan.density(subject.tokens_per_frame)}
        shares["LVSA"] = counted(rival, inputs, layers, tokens)
    shares[f"LVSA {version}"], times[f"LVSA {version}"] = shares.pop("LVSA"), times.pop("LVSA")
    facts = {"frames": frames, "tokens_per_frame": subject.tokens_per_frame, "layers": layers, "repeats": repeats}
    return [facts | row_of(name, share, times) for name, share in shares.items()]


def row_of(name: str, share: float, times: dict[str, list[float]]) -> dict[str, Any]:
    """The numbers of a side: of the whole forward, and of self-attention alone."""
    forward = [ms / base for ms, base in zip(times[name], times["dense"], strict=True)]
    alone = [
        (ms - none) / (base - none) for ms, base, none in zip(times[name], times["dense"], times["none"], strict=True)
    ]
    ratio = statistics.median(alone)
    return {
        "side": name,
        "ms": statistics.median(times[name]),
        "ratio": statistics.median(forward),
        "share": share,
        "attention_ratio": ratio,
        "ratio_over_share": ratio / share,
    }


def main() -> None:
    """Time each length, and write what is there after each."""
    parser = options("freeloc's TSA beside LVSA's SDPA path.", budget=3600, device="cpu")
    parser.add_argument("--lvsa", type=Path, required=True, help="a checkout of LongVideoSparseAttention")
    parser.add_argument("--frames", type=int, nargs="+", default=[41, 81, 161], help="latent frames (41 81 161)")
    parser.add_argument(
        "--tokens", type=int, nargs="+", choices=list(GRIDS), default=[60, 240], help="per frame (60 240)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="forwards of each (default: 5)")
    given = parser.parse_args()
    sys.path.insert(0, str(given.lvsa.resolve()))
    torch.set_num_threads(1)
    budget, layers = Budget(given.budget), 2
    rows: list[dict[str, Any]] = []
    for tokens in [6] if given.quick else given.tokens:
        subject = random_wan(layers, *GRIDS[tokens], quick=given.quick, heads=2)
        for frames in [42] if given.quick else given.frames:
            if budget.left > 0:
                rows += (found := rows_of(subject, GRIDS[tokens], frames, layers, given.repeats))
                for row in found:
                    say_row(row)
                write(given.out, "lvsa", rows, given.device)


if __name__ == "__main__":
    main()
