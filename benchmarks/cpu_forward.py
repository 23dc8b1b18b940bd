"""Is the patched forward of one checkout slower than that of another? Both run side by side, alternating.

    python benchmarks/cpu_forward.py OLD NEW

Each checkout runs in its own process on one thread. The two alternate forward by forward, so other load on the machine
affects both equally. CPU time of the process is measured. A checkout needs `freeloc.patch`,
`freeloc.default_profile` and the profile "tiny-wan", in whatever files they are.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prepare import link_packages

CASES = ("random Wan, 41 latent frames x 60 tokens", "tiny-wan, 84 latent frames x 35 tokens")


def make_random() -> tuple[Any, Any, tuple[int, ...], int]:
    """A small random Wan, a profile for it, the shape of its latents, and the size of a text token."""
    import torch
    from diffusers import WanTransformer3DModel

    import freeloc

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 4, "ffn_dim": 256}
    model = WanTransformer3DModel(**sizes, in_channels=4, out_channels=4, text_dim=16, freq_dim=32).eval()
    return model, freeloc.default_profile(model, trained_latent_frames=21), (1, 4, 41, 12, 20), 16


def make_tiny() -> tuple[Any, Any, tuple[int, ...], int]:
    """The same of the tiny model that comes with freeloc, at four times its trained length."""
    from freeloc.tiny.model import load_transformer

    model = load_transformer()
    return model, "tiny-wan", (1, 3, 84, 20, 28), model.config.text_dim


def work() -> None:
    """A checkout's process: for each number of a case that it reads, one forward, whose CPU seconds it prints."""
    import torch

    import freeloc

    if Path.cwd() not in Path(freeloc.__file__).parents:
        raise SystemExit(f"expected freeloc in {Path.cwd()}, found {freeloc.__file__}")
    torch.set_num_threads(1)
    cases: list[Callable[[], object]] = []
    for make in (make_random, make_tiny):
        model, profile, shape, text_dim = make()
        freeloc.patch(model, profile)
        generator = torch.Generator().manual_seed(0)
        latents, text = torch.randn(shape, generator=generator), torch.randn(1, 8, text_dim, generator=generator)
        given = {"hidden_states": latents, "encoder_hidden_states": text, "timestep": torch.tensor([500.0])}
        cases.append(functools.partial(model, **given))
    with torch.no_grad():
        for line in sys.stdin:
            start = time.process_time()
            cases[int(line)]()
            print(time.process_time() - start, flush=True)


class Checkout:
    """The process of one checkout."""

    def __init__(self, folder: Path, site: Path) -> None:
        link_packages(folder, site)
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--work"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=site
        )

    def forward(self, case: int) -> float:
        """CPU seconds of one forward."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(case, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("expected seconds from a checkout's process, found that it has ended: see above why")
        return float(answer)

    def end(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def compare(checkouts: Sequence[Checkout], case: int, repeats: int) -> None:
    """Time a case in rounds, each checkout first in every other one, and print the medians and their ratio."""
    for checkout in checkouts:
        checkout.forward(case)  # the warm-up
    times: list[list[float]] = [[], []]
    for round_number in range(repeats):
        for number in (0, 1) if round_number % 2 else (1, 0):
            times[number].append(checkouts[number].forward(case))
    old, new = (statistics.median(own) for own in times)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    quarter = repeats // 4
    print(
        f"{CASES[case]}: old {old:.4f} s, new {new:.4f} s, new / old {new / old:.4f}; per round "
        f"{statistics.median(ratios):.4f}, half of them {ratios[quarter]:.4f} to {ratios[-1 - quarter]:.4f}",
        flush=True,
    )


def main() -> None:
    """Compare two checkouts in all cases."""
    parser = argparse.ArgumentParser(description="Compare the patched forwards of two checkouts.")
    parser.add_argument("old", type=Path, help="a checkout of freeloc")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--repeats", type=int, default=15, help="forwards of each, at least 7 (default: 15)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkouts = []
        for name in ("old", "new"):
            site = Path(folder, name)
            site.mkdir()
            checkouts.append(Checkout(getattr(given, name).resolve(), site))
        for case in range(len(CASES)):
            compare(checkouts, case, max(7, given.repeats))
        for checkout in checkouts:
            checkout.end()


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main()
