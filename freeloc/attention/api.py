"""attend: attention of one layer under a plan, by the first backend that can compute it."""

from collections.abc import Sequence

from torch import Tensor

from freeloc.attention.backends import Backend, choose, sdpa
from freeloc.attention.layout import TokenLayout
from freeloc.attention.prepared import HeadGroup, LayerPlan, PreparedPlan


def rotate_keys(plan: PreparedPlan, keys: Tensor, query_frame: int, key_frames: Tensor) -> Tensor:
    """The keys of some frames, rotated so that they stand where the plan puts them for one query frame.

    It is all that a backend needs to know of positions.

    Args:
        plan: of these heads, made ready.
        keys: (batch, heads, frames, tokens_per_frame, head_dim), as the model has rotated them.
        query_frame: number of a latent frame.
        key_frames: numbers of the keys' latent frames, (frames,) int64 on the CPU.
    """
    if not plan.rotated[query_frame]:
        return keys
    return sdpa.rotate(keys, plan.rotations(query_frame, key_frames, keys), plan.span, plan.pairing)


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
        plan: of the layer, made ready.
        layout: what the tokens are.
        mask: the model's own, bool or additive, broadcastable to (batch, heads, tokens, tokens).
        scale: of the logits; by default head_dim ** -0.5.
        backends: the first one that can compute the call does.

    Returns:
        (batch, heads, tokens, head_dim), contiguous.

    Raises:
        LayoutError: if the tokens are not the layout's, the plan is for another number of frames, or no backend can
            compute the call or it returns something else.
    """
    if isinstance(plan, PreparedPlan):
        plan = LayerPlan([HeadGroup(None, plan)])
    backend = choose(backends, query, key, value, plan, layout, mask)
    return backend.compute(query, key, value, plan, layout, mask, scale)
