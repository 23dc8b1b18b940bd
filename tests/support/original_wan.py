"""An oracle for the repositories that hold Wan's code: dense logits from queries and keys that were not rotated.

Inside `dense_logits` the functions that rotate do nothing, and the kernel of the attention over the video computes the
plan's logits pair by pair (`oracle.wan_logits`). It shares no code with freeloc's engine.
"""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from oracle import wan_logits
from torch import Tensor, nn

import freeloc

TOLERANCE = 1e-5
"""Largest difference from dense logits."""


def function_at(path: str) -> tuple[Any, str]:
    """The module and the name in an import path, ``"package.module:name"``."""
    module, _, name = path.partition(":")
    return importlib.import_module(module), name


@contextlib.contextmanager
def dense_logits(
    sites: Mapping[nn.Module, int],
    profile: freeloc.Profile,
    size: tuple[int, int],
    kernel: str,
    rotations: Mapping[str, Callable[..., Any]],
    heads: str = "",
    references: int = 0,
) -> Iterator[None]:
    """Inside the block, these modules compute dense logits of queries and keys that were not rotated.

    Args:
        sites: the attention modules over the video, and their layers.
        profile: the profile.
        size: rows and columns of tokens.
        kernel: import path of the function that computes attention.
        rotations: import paths of the functions that rotate, and what takes their place.
        heads: its argument with the number of heads, if its tensors join heads and channels: (batch, tokens, h d).
        references: reference images before the video.
    """
    running: list[int] = []
    file, name = function_at(kernel)
    original = getattr(file, name)

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        if not running:
            return original(*args, **kwargs)
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        q, k, v = given["qkv"] if "qkv" in given else (given[each] for each in ("q", "k", "v"))
        if heads:
            q, k, v = (tensor.unflatten(2, (given[heads], -1)) for tensor in (q, k, v))
        lengths = given.get("k_lens")
        out = torch.zeros_like(q)
        for sample in range(len(q)):
            video = slice(0, q.shape[1] if lengths is None else int(lengths[sample]))
            at = slice(sample, sample + 1), video
            frames, _ = divmod(video.stop, size[0] * size[1])
            plan = freeloc.frame_plan(profile, running[-1], frames, reference_frames=(references, 0))
            logits = wan_logits(q[at], k[at], plan, *size)
            logits = logits.masked_fill(~plan.token_mask(size[0] * size[1]), float("-inf"))
            out[at] = (logits.softmax(dim=-1) @ v[at].transpose(1, 2).double()).transpose(1, 2).to(q.dtype)
        return out.flatten(2) if heads else out

    def leave(*call: Any) -> None:
        running.pop()

    with contextlib.ExitStack() as stack:
        for module, layer in sites.items():
            before = module.register_forward_pre_hook(lambda module, args, layer=layer: running.append(layer))
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        for path, still in {kernel: attend, **rotations}.items():
            stack.enter_context(mock.patch.object(*function_at(path), still))
        yield


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference."""
    return (one - other).abs().max().item()
