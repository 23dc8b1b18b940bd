"""attend: attention of one layer under a plan, computed by the first backend that supports the call."""

from collections.abc import Sequence

from torch import Tensor

from freeloc.attention.backends import Backend, choose, sdpa
from freeloc.attention.layer_plan import HeadGroup, LayerPlan
from freeloc.attention.layout import TokenLayout
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.rotation import rotate


def rotate_keys(plan: PreparedPlan, keys: Tensor, query_frame: int, key_frames: Tensor) -> Tensor:
    """Rotate the keys of some frames to their positions under a plan, relative to one query frame.

    A backend needs nothing else to execute the positions of a plan.

    Args:
        plan: the prepared plan of these heads.
        keys: (batch, heads, frames, tokens_per_frame, head_dim), already rotated by the model.
        query_frame: index of the query's latent frame.
        key_frames: indices of the keys' latent frames, (frames,) int64 on the CPU.
    """
    if not plan.rotated[query_frame]:
        return keys
    return rotate(keys, plan.rotations(query_frame, key_frames, keys), plan.span, plan.pairing)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan | PreparedPlan,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
    backends: Sequence[Backend] = (sdpa.BACKEND,),
) -> Tensor:
    """Attention of one layer under a plan.

    >>> import torch
    >>> from freeloc.adapter import TemporalRope
    >>> from freeloc.plans.vrpr import vrpr_plan
    >>> q, k, v = torch.randn(3, 1, 2, 8 * 6, 24)
    >>> plan = LayerPlan.of(vrpr_plan(8, trained_frames=4), TemporalRope(channels=8), head_dim=24)
    >>> attend(q, k, v, plan, TokenLayout(frames=8, height=2, width=3)).shape
    torch.Size([1, 2, 48, 24])

    Args:
        query, key, value: (batch, heads, tokens, head_dim), already rotated by the model.
        plan: the prepared plan of the layer.
        layout: the order of the tokens.
        mask: the model's attention mask, bool or additive, broadcastable to (batch, heads, tokens, tokens).
        scale: scale of the logits; by default head_dim ** -0.5.
        backends: backends in order of preference; the first that supports the call computes it.

    Returns:
        (batch, heads, tokens, head_dim), contiguous.

    Raises:
        LayoutError: if the number of tokens or frames does not match the layout, if no backend supports the call, or if
            its output has another shape, dtype or device.
    """
    if isinstance(plan, PreparedPlan):
        plan = LayerPlan([HeadGroup(None, plan)])
    backend = choose(backends, query, key, value, plan, layout, mask)
    return backend.compute(query, key, value, plan, layout, mask, scale)
