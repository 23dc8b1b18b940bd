"""How long does a forward of Wan2.1-T2V-1.3B take, patched and not? With random weights: speed does not ask which."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import has_diffusers, options, say, say_row, write
from layer import TRAINED
from timing import Budget, milliseconds

import freeloc

PROFILE = "wan2.1"
CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}
QUICK = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64}
"""Changes for a run that only shows that all works. The profile fits: layers and heads are the same."""


def make_model(device: str, dtype: torch.dtype, quick: bool) -> Any:
    """The transformer, with random weights, in the dtypes in which diffusers loads it."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(device):
        model = WanTransformer3DModel(**(CONFIG | (QUICK if quick else {})))
    kept = set(model._keep_in_fp32_modules)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)
    return model.eval().requires_grad_(False)


def make_inputs(model: Any, frames: int, device: str, dtype: torch.dtype, quick: bool) -> dict[str, Any]:
    """Inputs of one forward: latents of 480 x 832 pixels, 512 text tokens, batch 1."""
    height, width, text = (4, 6, 8) if quick else (60, 104, 512)
    config, how = model.config, {"device": device, "dtype": dtype}
    return {
        "hidden_states": torch.randn(1, config.in_channels, frames, height, width, **how),
        "encoder_hidden_states": torch.randn(1, text, config.text_dim, **how),
        "timestep": torch.tensor([500.0], device=device),
        "return_dict": False,
    }


def time_forward(model: Any, inputs: dict[str, Any], device: str, repeats: int, budget: Budget) -> dict[str, Any]:
    """Numbers of one row: medians after a warm-up, fewer than asked for where the budget ends before."""
    with torch.no_grad():
        first = milliseconds(lambda: model(**inputs), device)
        before = _start_peak() if device == "cuda" else 0
        found: list[float] = []
        while len(found) < repeats and (not found or budget.left > 1e-3 * first):
            found.append(milliseconds(lambda: model(**inputs), device))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if device == "cuda" else None
    return {"ms": statistics.median(found), "repeats": len(found)} | ({} if peak is None else {"peak_mib": peak})


def _start_peak() -> int:
    """Start to look for the most memory allocated; what is allocated now, in bytes."""
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def patched_row(
    model: Any, method: str | None, plain: dict[str, Any], time: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A row of the patched model: with the profile's choice, or with a method on every layer."""
    with freeloc.patch(model, profile=PROFILE, method=method) as patch:
        numbers = time()
        report = patch.report()
    say(str(report).split("\n")[0])
    kernels = sorted({name for layer in report.layers for name in layer.backends})
    name = f"patched, {method} on every layer" if method else f"patched, {PROFILE}"
    return {"model": name, "backend": ", ".join(kernels), "ratio": numbers["ms"] / plain["ms"]} | numbers


def main() -> None:
    """Time both lengths, unpatched and patched, and write what is there after each."""
    given = options("Time whole forwards of a Wan of the 1.3B size.", budget=95).parse_args()
    if not has_diffusers():
        say("skipped: diffusers is not installed (benchmarks/collect_wheels.sh collects its wheel)")
        return
    dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
    model = make_model(given.device, dtype, given.quick)
    say(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e9:.2f} billion parameters")
    budget, rows, repeats = Budget(given.budget), list[dict[str, Any]](), 1 if given.quick else 5

    def note(frames: int, row: dict[str, Any]) -> None:
        rows.append({"frames": frames} | row)
        say_row(rows[-1])
        write(given.out, "model", rows, given.device)

    for frames in (TRAINED, (2 if given.quick else 4) * (TRAINED - 1) + 1):
        inputs = make_inputs(model, frames, given.device, dtype, given.quick)
        time = functools.partial(time_forward, model, inputs, given.device, repeats, budget)
        note(frames, plain := {"model": "unpatched", "backend": "", "ratio": 1.0} | time())
        for method in (None,) if frames == TRAINED or given.quick else (None, "tsa"):
            if budget.left < 3e-3 * plain["ms"]:
                say(f"{frames} latent frames, {method or PROFILE}: left out for want of time")
            else:
                note(frames, patched_row(model, method, plain, time))


if __name__ == "__main__":
    main()
