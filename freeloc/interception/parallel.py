"""Layers that several processes compute together: whose heads a call holds, and in which order its tokens are.

Ulysses exchanges tokens for heads before the attention call: each process then has some heads of the whole sequence,
which is the parts of all processes after one another, each with its own video and text. Tensor parallelism splits the
weights by head, and leaves the tokens alone.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freeloc.adapter.context_parallel import ContextParallel, mesh_at
from freeloc.adapter.spec import Adapter
from freeloc.attention.layer_plan import LayerPlan, LayerPlans
from freeloc.attention.layout import TokenLayout
from freeloc.errors import LayoutError
from freeloc.interception.kernel_call import KernelCall
from freeloc.interception.patched import PatchedModel


class Share(NamedTuple):
    """The part of a layer that this process computes.

    >>> Share(rank=1, degree=2, gathers=True).heads(12)
    range(6, 12)

    Args:
        rank: number of this process among those that share the layer; None if it cannot be known.
        degree: number of these processes.
        gathers: whether the tokens were gathered from these processes, in the order of their ranks (Ulysses).
        tokens: how many this process has of a sequence that a library shares which freeloc does not know; 0 if it does.
    """

    rank: int | None
    degree: int
    gathers: bool
    tokens: int = 0

    def heads(self, count: int) -> range:
        """The heads of this process, among those of the model; the last process may have fewer."""
        assert self.rank is not None  # only asked where it is known
        most = -(-count // self.degree)
        return range(min(self.rank * most, count), min((self.rank + 1) * most, count))

    def part(self, tokens: int) -> range:
        """The tokens of this process before they are gathered, among all. The first processes may have one more."""
        # Where the rank is not known, another may be meant: freeloc only compares what such parts have in common.
        rank = torch.distributed.get_rank() % self.degree if self.rank is None else self.rank
        most = -(-tokens // self.degree)
        if self.tokens == most:  # then the last processes may have padding
            return range(min(rank * most, tokens), min((rank + 1) * most, tokens))
        size, more = divmod(tokens, self.degree)
        start = rank * size + min(rank, more)
        return range(start, start + size + (rank < more))

    def label(self, count: int) -> str:
        """The share in words, for reports."""
        if self.rank is None:
            return f"this process computes some of {count} heads"
        heads = self.heads(count)
        return f"this process ({self.rank + 1} of {self.degree}) computes heads {heads[0]} to {heads[-1]} of {count}"


UNKNOWN = Share(None, 1, False)


def sequence_share(names: ContextParallel | None, module: nn.Module, tokens: int | None, video: int) -> Share | None:
    """Whose tokens a module has, if several processes share the sequence; None if it has all.

    Args:
        names: where the module finds the device meshes.
        module: the attention module.
        tokens: video tokens that it was called with; None if they are not known.
        video: video tokens of the whole sequence; 0 if they are not known.
    """
    mesh = mesh_at(module, names.ulysses) if names else None
    if mesh is not None:
        # The rank in the group, not in the mesh: the group orders its processes, and its collectives use this order.
        return Share(torch.distributed.get_rank(mesh.get_group()), mesh.size(), True)
    world = torch.distributed.get_world_size()
    for degree in range(2, world + 1):  # a library that freeloc does not know
        parts = -(-video // degree), video // degree
        if world % degree == 0 and tokens and tokens in parts and tokens < video:
            return Share(None, degree, True, tokens)
    return None


def head_share(
    model: PatchedModel, module: nn.Module, call: KernelCall, tokens: Share | None, video: int
) -> Share | None:
    """Whose heads the kernel call of a module has; None if it has all, of all tokens.

    Args:
        model: the model.
        module: its attention module, while it is running.
        call: the kernel call.
        tokens: whose tokens the module has.
        video: video tokens of the whole sequence.

    Raises:
        LayoutError: if the call has other heads, or fewer tokens, than this share.
    """
    heads, whole = call.query.shape[1], model.shape.heads
    if tokens is None:
        return None if heads == whole else _tensor_parallel(module, heads, whole)
    if call.query.shape[2] < video:
        raise LayoutError(
            f"expected {video} tokens of video in the attention of each of {tokens.degree} processes, found "
            f"{call.query.shape[2]}, those of one process: its attention processor knows nothing of the others. Set "
            "processors before the model is split"
        )
    if tokens.rank is not None and (len(tokens.heads(whole)) != heads or not heads):
        raise LayoutError(
            f"expected {len(tokens.heads(whole))} of {whole} heads in process {tokens.rank + 1} of {tokens.degree}, "
            f"found {heads}"
        )
    return tokens


def _tensor_parallel(module: nn.Module, heads: int, whole: int) -> Share:
    """The share of a module whose weights are `DTensor`s with their outputs, and so their heads, split."""
    found = set()
    for weight in _distributed(module.parameters()):
        for axis, placement in enumerate(weight.placements):
            size, rank = weight.device_mesh.size(axis), weight.device_mesh.get_local_rank(axis)
            if placement.is_shard(0) and size * heads == whole:
                found.add(Share(rank, size, False))
    return found.pop() if len(found) == 1 else UNKNOWN


def plans_of(share: Share, model: PatchedModel, plans: LayerPlans, plan: LayerPlan, text: int) -> LayerPlans:
    """The plans for the heads of a share. If it is unknown, those of all heads, which must not differ.

    Args:
        share: the share.
        model: the model.
        plans: its plans.
        plan: that of the layer.
        text: text tokens in the sequence.

    Raises:
        LayoutError: if they do, or if the order of video and text cannot be known.
    """
    whole = model.shape.heads
    if model.correction.needs_all_heads:
        raise LayoutError(
            f"expected all {whole} heads and all tokens of the model in this process, found a part of them: several "
            "processes share the model. A probe needs the whole model in each process"
        )
    if share.rank is not None:
        return plans.of_heads(share.heads(whole))
    text = text if share.gathers else 0
    if text or len(plan.groups) > 1 or model.frequencies.ndim > 1:
        which = f"the order of {text} tokens of text among the video" if text else "which heads they are"
        raise LayoutError(
            f"expected all {whole} heads of the model in each call, found a part of them: several processes share this "
            f"layer, and freeloc cannot find out {which}. It can where the weights are split as DTensors, and where "
            "the adapter names the device mesh (Adapter.context_parallel), as for diffusers and cache-dit"
        )
    return plans


def _distributed(tensors: Iterable[Tensor]) -> list[Any]:
    """Those that are `DTensor`s. Without its module there are none, and importing it takes a while."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    return [tensor for tensor in tensors if isinstance(tensor, kind)]


def is_shared(model: nn.Module, adapter: Adapter) -> bool:
    """Whether several processes share the tokens or the weights of a transformer, as far as that can be seen."""
    names = adapter.context_parallel
    paths = (*names.ulysses, *names.ring) if names else ()
    if any(mesh_at(module, paths) is not None for _, _, _, module in adapter.places(model)):
        return True
    weights = list(model.parameters())
    split = [weight for weight in _distributed(weights) if weight.device_mesh.size() > 1]
    # The mark of FullyShardedDataParallel, whose parameters are no DTensors.
    flattened = any(getattr(weight, "_fsdp_flattened", False) for weight in weights)
    return bool(split) or (flattened and torch.distributed.get_world_size() > 1)


def require_supported(model: PatchedModel, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse what no correction can be right in, before an attention module computes anything.

    Args:
        model: the model.
        module: its attention module.
        args, kwargs: the arguments of the module's call.

    Raises:
        LayoutError: if keys and values travel in a ring, or if gradients are needed under Ulysses.
    """
    names = model.adapter.context_parallel
    if names and (mesh := mesh_at(module, names.ring)) is not None:
        raise LayoutError(
            f"{type(model.module).__name__} attends in a ring of {mesh.size()} processes, where each sees some keys "
            "at a time: freeloc needs all of them. Use Ulysses instead (ulysses_degree, with a ring_degree of 1)"
        )
    if torch.is_grad_enabled() and names and mesh_at(module, names.ulysses) is not None:
        refuse_gradients(model.module, args, kwargs)


def refuse_gradients(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call of a module whose attention is computed without a graph, if it needs gradients.

    Raises:
        LayoutError: if it does.
    """
    given = [*args, *kwargs.values(), *module.parameters()]
    if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in given):
        raise LayoutError(
            f"{type(module).__name__} needs gradients, and its library computes those of its attention itself, where "
            "freeloc cannot correct them: they would belong to the uncorrected attention. Run it under torch.no_grad, "
            "or train without context parallelism"
        )


def of_heads(per_head: Tensor, share: Share | None) -> Tensor:
    """Of a tensor (pairs,) or (heads, pairs), the part for the heads of a share."""
    known = per_head.ndim > 1 and share is not None and share.rank is not None
    return per_head[list(share.heads(len(per_head)))] if share is not None and known else per_head


def in_layout(call: KernelCall, layout: TokenLayout, share: Share) -> KernelCall:
    """A call whose tokens are gathered from several processes, with its tokens in the order of the layout.

    Raises:
        LayoutError: if video or text does not divide evenly, or if the mask is for another order of the tokens.
    """
    if call.query.shape[2] != layout.tokens or call.key.shape[2] != layout.tokens:
        raise LayoutError(
            f"expected {layout.tokens} tokens from {share.degree} processes, each with as many as the others, found "
            f"{call.query.shape[2]} queries and {call.key.shape[2]} keys"
        )
    text = layout.text_first + layout.text_last
    for name, count in (("video", layout.tokens - text), ("text", text)):
        if count % share.degree:
            raise LayoutError(
                f"expected numbers of video and text tokens that divide among {share.degree} processes, found {count} "
                f"of {name}: pad or cut the text, or change the size of the video"
            )
    query, key, value = (_in_layout(tensor, layout, share.degree, 2) for tensor in call[:3])
    mask = call.mask
    if mask is not None:
        for axis in (-1, -2):
            if mask.ndim >= -axis and mask.shape[axis] == layout.tokens:
                mask = _in_layout(mask, layout, share.degree, axis % mask.ndim)
        _require_visible_video(mask, layout)
    return call._replace(query=query, key=key, value=value, mask=mask)


def _parts(layout: TokenLayout) -> list[int]:
    """Numbers of tokens in the parts of a sequence, in order."""
    return [count for count in (layout.text_first, layout.frames * layout.tokens_per_frame, layout.text_last) if count]


def _in_layout(tensor: Tensor, layout: TokenLayout, degree: int, axis: int) -> Tensor:
    by_process = tensor.unflatten(axis, (degree, -1))
    pieces = by_process.split([count // degree for count in _parts(layout)], axis + 1)
    return torch.cat([piece.flatten(axis, axis + 1) for piece in pieces], axis)


def as_gathered(tensor: Tensor, layout: TokenLayout, share: Share) -> Tensor:
    """(batch, heads, tokens, head_dim) in the order of the layout, in the order of the processes again."""
    pieces = [piece.unflatten(2, (share.degree, -1)) for piece in tensor.split(_parts(layout), 2)]
    return torch.cat(pieces, 3).flatten(2, 3)


def _require_visible_video(mask: Tensor, layout: TokenLayout) -> None:
    """A mask hides padded text. If it hides video, it is for [video, text], not for the parts of the processes."""
    if mask.shape[-1] != layout.tokens:
        return
    video = mask[..., layout.video]
    hidden = ~video if mask.dtype == torch.bool else video < -1e3
    if hidden.any():
        raise LayoutError(
            "the attention mask hides tokens of the video: it was made for all text after all video, and several "
            "processes share this sequence, each with a part of both. The model without freeloc is wrong here, too. "
            "Give text without padding, or use a library that splits the mask like the tokens (cache-dit)"
        )
