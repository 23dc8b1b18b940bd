"""Random plans, inputs and masks for attention, and the comparison with the reference implementation."""

import math

import torch

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention import attend, attend_reference
from freeloc.attention.prepared import PreparedPlan
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED

PAIRINGS = ("(pair two)", "(two pair)")
CHANGES = ("frequencies", "logit_scale", "scale by tokens", "decay", "bias")
"""What `random_plan` can change beside positions and visibility. Of two scales, one wins."""
MASKS = ("none", "bool keys", "bool pairs", "float keys", "float pairs")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
ROPE = TemporalRope(channels=4, first=2)


def random_plan(generator, frames, stripe=0.3, own_frame=DENSE, changes=()):
    """Fractional positions far outside the trained range; `own_frame` None leaves the diagonal random."""
    positions = 80 * torch.rand(frames, frames, generator=generator, dtype=torch.float64) - 40
    rounded = torch.rand(frames, frames, generator=generator) < 0.3
    positions = torch.where(rounded, positions.round(), positions)
    visibility = torch.randint(0, 3, (frames, frames), generator=generator, dtype=torch.uint8)
    if own_frame is not None:
        visibility.fill_diagonal_(own_frame)
    blind = (visibility == NONE).all(dim=1)
    visibility[blind, 0] = STRIPED
    possible = {
        "frequencies": lambda frequencies: frequencies.flip(0) * 1.7,
        "logit_scale": 1.9,
        "decay": 2 * torch.rand(frames, frames, generator=generator, dtype=torch.float64),
        "bias": random_bias(generator, frames),
        "scale by tokens": lambda tokens_per_frame: 0.5 + 1 / tokens_per_frame,
    }
    own = {"scale by tokens": "logit_scale"}
    return FramePlan(positions, visibility, stripe, **{own.get(name, name): possible[name] for name in changes})


def random_bias(generator, frames):
    """-2 to 2, and 0 for every second query frame and key frame, so that some frames and pairs have none."""
    bias = 4 * torch.rand(frames, frames, generator=generator, dtype=torch.float64) - 2
    bias[1::2, 1::2] = 0
    return bias


def random_inputs(generator, layout, batch=1, heads=2, head_dim=12, dtype=torch.float32):
    return torch.randn(3, batch, heads, layout.tokens, head_dim, generator=generator).to(dtype).unbind()


def random_mask(generator, kind, batch, heads, layout, dtype=torch.float32):
    """A model's mask in which every query keeps a key of its own frame."""
    tokens = layout.tokens
    if kind == "none":
        return None
    shape = {
        "bool keys": (batch, 1, 1, tokens),
        "bool pairs": (1, 1, tokens, tokens),
        "float keys": (batch, 1, 1, tokens),
        "float pairs": (batch, heads, tokens, tokens),
    }[kind]
    kept = torch.rand(shape, generator=generator) < 0.6
    if shape[-2] == 1:
        kept[..., layout.video.start : layout.video.stop : layout.tokens_per_frame] = True
    else:
        kept |= torch.eye(tokens, dtype=torch.bool)
    if "bool" in kind:
        return kept
    return torch.randn(shape, generator=generator).to(dtype).masked_fill(~kept, -math.inf)


def assert_equals_the_reference(tensors, plan, rope, layout, mask=None, scale=None):
    query, key, value = tensors
    tables = PreparedPlan(plan, rope, query.shape[-1])
    found = attend(query, key, value, tables, layout, mask, scale)
    expected = attend_reference(query, key, value, plan, rope, layout, mask, scale)
    assert found.dtype == query.dtype
    assert found.is_contiguous()
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
