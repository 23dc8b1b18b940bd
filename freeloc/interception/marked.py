"""Runs an attention module once on marked tokens, to see in what order and how rotated they reach its kernel.

Attention processors may regroup tokens, and rotate them by rules of their own. The first call of each size therefore
runs the module once more, up to its kernel, on tokens that are equal in all frames and carry a code of their place in
the frame. If the kernel gets them in another order, or rotated in another way than was read, the call is refused.
"""

from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeloc.adapter.kernel import Kernel
from freeloc.adapter.rope import TemporalRope
from freeloc.attention.devices import OnCpu
from freeloc.attention.layout import TokenLayout
from freeloc.attention.rotation import rotate
from freeloc.errors import LayoutError
from freeloc.interception import compiled, context
from freeloc.interception.context import Opened
from freeloc.interception.interceptors import interceptor_of
from freeloc.interception.kernel_call import KernelCall, read_call
from freeloc.interception.module_call import CallReader, Which
from freeloc.interception.parallel import Share, in_layout, of_heads
from freeloc.interception.patched import PatchedModel

ROTATION_TOLERANCE, ROTATION_TOLERANCE_OF_HALF = 2e-2, 6e-2
"""Largest error of rotated queries and keys, as a share of the largest, in float32 and in half precision."""

ORDER_TOLERANCE = 0.2
"""Largest distance of a value from that of its code, as a share of the spread of all values."""

CODE = 8
"""Numbers in the code of a place."""

Running = tuple[FrameType, context.Arguments | None]
"""The frame of a running call, and its arguments; None if they are not known."""


class MarkedRunEndedError(Exception):
    """Ends the run of a module at its kernel."""


def check(
    model: PatchedModel,
    reader: CallReader,
    module: nn.Module,
    running: Running,
    kernel_call: tuple[KernelCall, Which, TokenLayout],
    shares: tuple[Share | None, Share | None],
    path: str,
) -> None:
    """Run an attention module on marked tokens, unless another one of its kind was checked at this size.

    `shares`: whose tokens the module has, and of whom its kernel gathers video and text, if several processes do.

    Raises:
        LayoutError: if tokens reach its kernel in another order, or rotated in another way, than was read.
    """
    call, which, layout = kernel_call
    processor = getattr(module, "processor", None)
    own = path if is_foreign(module) or compiled.has_own_forward(module) else ""
    key = reader.site.path, type(module), type(processor), own, *which[:3], which.share
    if key in model.checked or not is_plain(call.query) or call.query.shape[2] < layout.tokens:
        return  # a wrong number of tokens is an error of its own
    run = run_marked(reader, module, running, layout, model.rope is None, shares[0])
    if run is not None:
        at_kernel = run[0] if shares[1] is None else in_layout(run[0], layout, shares[1])
        rope, per_frame = model.rope, of_heads(model.per_frame(which.rotation), which.share)
        problem = problem_of(at_kernel, run[1], layout, rope, per_frame, which.length.first, model.adapter.rounding)
        if problem:
            name = type(module if processor is None else processor).__name__
            raise LayoutError(f"{path} ({name}): {problem} (adapter '{model.adapter.name}')")
        model.checked.add(name_of(processor))
    model.checked.add(key)


def is_foreign(module: nn.Module) -> bool:
    """Whether the processor of a module is of another library than the module."""
    processor = getattr(module, "processor", None)
    return processor is not None and _library_of(processor) != _library_of(module)


def name_of(thing: object) -> str:
    """The qualified name of an object's class."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _library_of(thing: object) -> str:
    return type(thing).__module__.partition(".")[0]


def run_marked(
    reader: CallReader, module: nn.Module, running: Running, layout: TokenLayout, by_frame: bool, share: Share | None
) -> tuple[KernelCall, Tensor] | None:
    """The kernel call of a module on marked tokens, and their codes; None if it cannot be made.

    Args:
        reader: reads the calls of the module.
        module: the attention module, which is running.
        running: the frame of its call, and its arguments.
        layout: the order of the tokens.
        by_frame: see `marks`.
        share: whose tokens the call has, if several processes share the sequence: then all of them run this.
    """
    frame, arguments = running
    hidden = None if arguments is None else reader.hidden_states(reader.given(*arguments))
    if arguments is None or hidden is None or hidden.ndim != 3 or not is_plain(hidden):
        return None
    with OnCpu():
        tokens, codes = marks(layout, hidden.shape[2], hidden, by_frame)
    seen: list[KernelCall] = []

    def capture(kernels: Sequence[Kernel], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        seen.append(read_call(kernels, args, kwargs, reader.site.text))
        raise MarkedRunEndedError

    interceptor = interceptor_of(reader.kernels, module, capture, frame)
    forward = context.current(reader.model)
    assert forward is not None  # the call of `frame`
    forward.open.append(Opened(capture, interceptor, interceptor.leave))  # ends with it, also after an interrupt
    marked = _with_marks(hidden, tokens, layout.text_first if reader.site.joint else 0, share)
    args, kwargs = reader.with_hidden_states(marked, *arguments)
    bypasses = reader.model.adapter.bypasses
    # A cache on the module must not count this run as a step. What it does before the module runs is done already.
    is_bypassed = bypasses is not None and bypasses.found([module])
    call = type(module).forward.__get__(module) if is_bypassed else module.forward
    with torch.no_grad():
        try:
            interceptor.enter()
            call(*args, **kwargs)
        except MarkedRunEndedError:
            pass
        finally:
            forward.end(capture)
    return (seen[0], codes) if seen else None


def _with_marks(hidden_states: Tensor, tokens: Tensor, first: int, share: Share | None) -> Tensor:
    """Hidden states whose video, after `first` tokens of text, is replaced by marked tokens, or by this process's."""
    if share is not None:
        part = share.part(len(tokens))
        tokens, first = tokens[part.start : part.stop], first // share.degree
    elif len(tokens) > hidden_states.shape[1] - first and torch.distributed.is_initialized():
        # of a library that freeloc does not know, and maybe padded
        own = hidden_states.shape[1]
        start = own * (torch.distributed.get_rank() % -(-len(tokens) // own))
        tokens = tokens[start : start + own]
    marked = hidden_states.detach().clone()
    marked[:, first : first + len(tokens)] = tokens
    return marked


def marks(layout: TokenLayout, channels: int, like: Tensor, by_frame: bool) -> tuple[Tensor, Tensor]:
    """Marked tokens of the video, (tokens, channels), and their codes, (tokens, size of a code).

    All have mean 0 and variance 1, so that a normalization leaves them alone.

    Args:
        layout: the order of the tokens.
        channels: channels of a token.
        like: a tensor with their dtype and device.
        by_frame: whether frames have codes too, for models without RoPE, in which equal frames cannot be told apart.
    """
    places = layout.frames * layout.tokens_per_frame if by_frame else layout.tokens_per_frame
    size = max(2, min(CODE, places // 2, channels - 1))
    generator = torch.Generator("cpu").manual_seed(0)
    float32: dict[str, Any] = {"generator": generator, "dtype": torch.float32}  # whatever the caller's default is
    codes = F.normalize(torch.randn(places, size, **float32), dim=1)
    directions = torch.randn(channels, size, **float32)
    directions = torch.linalg.qr(directions - directions.mean(dim=0)).Q  # so that all tokens have one mean and length
    codes = codes if by_frame else codes.repeat(layout.frames, 1)
    return (channels**0.5 * codes @ directions.mT).to(like.device, like.dtype), codes


def problem_of(
    call: KernelCall,
    codes: Tensor,
    layout: TokenLayout,
    rope: TemporalRope | None,
    per_frame: Tensor,
    first: int,
    rounding: float = 0.0,
) -> str:
    """What is wrong with the order or the rotation of marked tokens at a kernel; empty if nothing is.

    Args:
        call: the kernel's call.
        codes: see `marks`.
        layout: the order of the tokens.
        rope: the temporal RoPE with the model's own numbers; None if it has none.
        per_frame: radians per latent frame, (pairs,) or (heads, pairs).
        first: reference images before the video.
        rounding: see `Adapter.rounding`.
    """
    query, key, value = (tensor[:1, :, layout.video] for tensor in call[:3])
    size = layout.frames, layout.tokens_per_frame
    if rope is not None:
        with OnCpu():
            error = max(_rotation_error(tensor.unflatten(2, size), rope, per_frame, first) for tensor in (query, key))
        least = ROTATION_TOLERANCE if value.element_size() > 2 else ROTATION_TOLERANCE_OF_HALF
        if error > max(least, 4 * rounding):
            return f"between equal frames they are not rotated as its rotary tables or its adapter say (by {error:.1e})"
    if _order_error(value, codes) > ORDER_TOLERANCE:
        return "tokens reach its kernel in another order than frame by frame, in raster order"
    return ""


def _rotation_error(frames: Tensor, rope: TemporalRope, per_frame: Tensor, first: int) -> float:
    """Error of frames computed from the second of the video, (1, heads, frames, tokens, head_dim), head by head."""
    start = min(first + 1, frames.shape[2] - 1)
    later = torch.arange(frames.shape[2] - start, dtype=torch.float64, device="cpu")
    worst, largest = 0.0, float(frames.abs().max())
    for head in range(frames.shape[1]):
        own = per_frame[head] if per_frame.ndim > 1 else per_frame
        angles = (later[:, None] * own)[:, None]
        wide = torch.promote_types(frames.dtype, torch.float32)
        rotations = torch.polar(torch.ones_like(angles), angles).to(torch.promote_types(wide, torch.complex64))
        found = frames[:, head : head + 1, start:].to(wide)
        base = found[:, :, :1].expand_as(found)
        expected = rotate(base, rotations.to(frames.device), rope.span(frames.shape[-1]), rope.pairing)
        worst = max(worst, float((expected - found).abs().max()))
    return worst / max(largest, 1e-12)


def _order_error(value: Tensor, codes: Tensor) -> float:
    """Distance of values (1, heads, tokens, head_dim) from an affine function of the codes of their places."""
    known = torch.cat([torch.ones_like(codes[:, :1]), codes], dim=1).to(value.device)
    if len(known.unique(dim=0)) <= known.shape[1]:
        return 0.0  # with so few places, any order fits
    solve = torch.linalg.pinv(known)
    worst = 0.0
    for head in value[0].float():
        spread = (head - head.mean(dim=0)).norm(dim=-1).mean()
        error = (head - known @ (solve @ head)).norm(dim=-1).max()
        worst = max(worst, float(error / spread.clamp(min=1e-12)))
    return worst


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers on a device: not a fake, traced, batched or distributed one."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return False
    if torch._C._get_tracing_state() or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
