"""Measures the cost of a local probe: ``python -m freeloc.tiny.probe_cost``.

Prints the time of a run of the tiny model at four trained lengths with and without the probe, measured alternately.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from freeloc.probing import Local, probe
from freeloc.tiny.model import load_pipeline, long_frames, noise, sample
from freeloc.tiny.synthetic import PROMPTS

TOKENS_PER_FRAME = 35


def seconds(function: Callable[[], Any]) -> float:
    """The time of a call, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Warm up once, then measure both alternately."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=4, help="length, in trained lengths")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps, two calls of the transformer each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=256, help="query tokens whose softmax is computed, 0 for all")
    arguments = parser.parse_args()
    pipeline, prompt = load_pipeline(), PROMPTS[0]
    frames = long_frames(arguments.times)

    def run(prompt: str) -> torch.Tensor:
        return sample(pipeline, [prompt], noise([0], frames), steps=arguments.steps)

    def probed() -> None:
        probe(pipeline, run, Local(rows=arguments.rows or None), prompts=[prompt], profile="tiny-wan")

    run(prompt)
    probed()
    pairs = [(seconds(lambda: run(prompt)), seconds(probed)) for _ in range(arguments.repeats)]
    plain, with_probe = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(second / first for first, second in pairs)
    print(
        f"{frames} latent frames, {frames * TOKENS_PER_FRAME} tokens, {arguments.steps} steps with guidance, "
        f"{torch.get_num_threads()} threads, {arguments.repeats} repeats\n"
        f"run {plain:.2f} s, probed {with_probe:.2f} s (medians); ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
