"""Whether the kernel gives the right numbers on this card: tried once, on a small call, before the first real one."""

import functools

import torch

from freeloc.adapter.rope import TemporalRope
from freeloc.attention.backends.reference import attend_reference
from freeloc.attention.backends.triton.launch import run
from freeloc.attention.backends.triton.tables import padded
from freeloc.attention.backends.triton.tuning import candidates
from freeloc.attention.devices import OnCpu
from freeloc.attention.layer_plan import LayerPlan
from freeloc.attention.layout import TokenLayout
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.tsa import TsaSettings, tsa_visibility
from freeloc.plans.vrpr import vrpr_positions

FRAMES, TRAINED = 9, 4
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@functools.cache
def what_is_wrong(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """How the kernel differs from the reference implementation in a call with all tiers, rotations, text and a mask.

    Returns:
        An empty text if it does not.
    """
    layout = TokenLayout(FRAMES, height=5, width=9, text_first=3, text_last=7)
    settings = TsaSettings(dense_frames=1, striped_frames=5, stripe=0.25)
    plan = FramePlan(vrpr_positions(FRAMES, TRAINED), tsa_visibility(FRAMES, TRAINED, settings), settings.stripe)
    rope = TemporalRope(channels=2 * (head_dim // 4))
    with OnCpu(), torch.inference_mode():
        generator = torch.Generator("cpu").manual_seed(0)
        query, key, value = torch.randn(3, 1, 2, layout.tokens, head_dim, generator=generator).to(dtype)
        mask = torch.rand(1, 1, 1, layout.tokens, generator=generator) < 0.8
        prepared = LayerPlan.of(plan, rope, head_dim)
        expected = attend_reference(query, key, value, plan, rope, layout, mask)
        config = candidates(layout.tokens_per_frame, padded(head_dim))[0]
        try:
            query, key, value, mask = (tensor.to(device) for tensor in (query, key, value, mask))
            found = run(query, key, value, prepared, layout, mask, None, config).cpu()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton's compiler raises errors of many kinds
            first = (str(error).strip() or "no message").splitlines()[0]
            return f"cannot be compiled or run here: {type(error).__name__}: {first}"
    worst = float((found.double() - expected.double()).abs().max())
    return "" if worst <= TOLERANCE[dtype] else f"differs from the reference by {worst:.1e} in a trial on this card"
