"""A small video transformer whose attention calls its kernel in each of the ways that libraries do.

The kernels bring their arguments into PyTorch's order by themselves, with einops, and call PyTorch's function. So
`dense.oracle`, which replaces that function, also checks how freeloc reads them.
"""

import functools
import itertools
from dataclasses import replace

import einops
import torch
import torch.nn.functional as F
from dense import Facts, axis_by_axis, blocks, frequencies, interleaved
from torch import nn

from freeloc.adapter import Adapter, AttentionSite, Kernel, TemporalRope, TokenGrid
from freeloc.testing import Example, noise, random_model

HEADS, HEAD_DIM, TEXT = 2, 12, 4
LAYOUTS = ("b h l d", "b l h d", "b l (h d)")


def arranged(tensor, layout, output):
    return einops.rearrange(tensor, f"{layout} -> {output}", h=HEADS)


def attention(q, k, v, heads, mask=None, layout="b l (h d)", output="b l (h d)"):
    """Attention between any two layouts."""
    assert heads == HEADS
    q, k, v = (arranged(tensor, layout, "b h l d") for tensor in (q, k, v))
    return arranged(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h l d", output)


class Attention(nn.Module):
    """Self-attention over text and video."""

    def __init__(self, layout, output):
        super().__init__()
        self.layout, self.output, self.heads = layout, output, HEADS
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM) for _ in range(4))

    def kernel(self, q, k, v, mask):
        """Call the kernel with (batch, tokens, heads, head_dim), and return its output."""
        q, k, v = (arranged(tensor, "b l h d", self.layout) for tensor in (q, k, v))
        return attention(q, k, v, self.heads, mask=mask, layout=self.layout, output=self.output)

    def argument(self, x):
        """The argument of this module with the tokens."""
        return x

    def forward(self, x, turns, mask):
        """`x` is (batch, tokens, channels), `turns` (cos, sin) of the pairs of each token, `mask` the keys seen."""
        q, k, v = (layer(x).unflatten(2, (HEADS, HEAD_DIM)) for layer in (self.to_q, self.to_k, self.to_v))
        return self.out(arranged(self.kernel(turn(q, turns), turn(k, turns), v, mask), self.output, "b l (h d)"))


def reshaping_attention(q, k, v, heads, mask=None, skip_reshape=False, **options):
    """A kernel of two layouts, with masks of a batch, and options that may change nothing or the result."""
    if not skip_reshape:
        q, k, v = (arranged(tensor, "b l (h d)", "b h l d") for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], scale=options.get("sharpness"))
    return arranged(out, "b h l d", "b l (h d)")


class Reshaping(Attention):
    """Attention that calls one kernel in one layout, or in the other where `skip` is set."""

    def __init__(self, skip):
        super().__init__("b l (h d)", "b l (h d)")
        self.skip, self.options = skip, {"precision": "high"}

    def kernel(self, q, k, v, mask):
        layout = "b h l d" if self.skip else "b l (h d)"
        q, k, v = (arranged(tensor, "b l h d", layout) for tensor in (q, k, v))
        skip = {"skip_reshape": True} if self.skip else {}
        mask = mask[:, 0].expand(-1, q.shape[2 if self.skip else 1], -1)
        return reshaping_attention(q, k, v, heads=HEADS, mask=mask, **skip, **self.options)


def list_attention(qkv, drop_rate=0.0):
    """A kernel that gets a list, and clears it to save memory, as those of musubi-tuner and Wan2GP do."""
    q, k, v = (arranged(tensor, "b l h d", "b h l d") for tensor in qkv)
    qkv.clear()
    return arranged(F.scaled_dot_product_attention(q, k, v), "b h l d", "b l h d")


class Listing(Attention):
    """Attention that hands a list to its kernel, and gets one."""

    def __init__(self):
        super().__init__("b l h d", "b l h d")

    def kernel(self, q, k, v, mask):
        tensors = [q, k, v]
        return list_attention(tensors)

    def argument(self, x):
        return [x]

    def forward(self, streams, turns, mask):
        x = streams[0]
        streams.clear()
        return super().forward(x, turns, mask)


def pair_attention(q, k, v, text_mask=None, mode="flash"):
    """A kernel that gets pairs of video and text, and a mask of the text, as that of HunyuanVideo 1.5 does."""
    (q, text_q), (k, text_k), (v, text_v) = q, k, v
    seen = None if text_mask is None else F.pad(text_mask, (k.shape[1], 0), value=1).bool()[:, None, None]
    joined = [torch.cat(pair, dim=1).transpose(1, 2) for pair in ((q, text_q), (k, text_k), (v, text_v))]
    return arranged(F.scaled_dot_product_attention(*joined, attn_mask=seen), "b h l d", "b l (h d)")


class Pairing(Attention):
    """Attention that hands pairs to its kernel."""

    def __init__(self, mode="flash"):
        super().__init__("b l h d", "b l (h d)")
        self.mode = mode

    def kernel(self, q, k, v, mask):
        pairs = ((tensor[:, :-TEXT], tensor[:, -TEXT:]) for tensor in (q, k, v))
        return pair_attention(*pairs, text_mask=mask[:, 0, 0, -TEXT:].long(), mode=self.mode)


def part_attention(q, k, v, text_q=None, text_k=None, text_v=None):
    """A kernel that gets and returns video and text apart, as that of FastVideo does."""
    joined = [torch.cat([a, *([] if b is None else [b])], 1) for a, b in ((q, text_q), (k, text_k), (v, text_v))]
    out = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in joined)).transpose(1, 2)
    return out[:, : q.shape[1]], None if text_q is None else out[:, q.shape[1] :]


class Parting(Attention):
    """Attention that gets two tensors from its kernel, or all tokens as one of them and no other."""

    def __init__(self, is_text):
        super().__init__("b l h d", "b l h d")
        self.is_text = is_text

    def kernel(self, q, k, v, mask):
        if not self.is_text:
            video, text = part_attention(q, k, v)
            assert text is None
            return video
        video, text = part_attention(*(t[:, :-TEXT] for t in (q, k, v)), *(t[:, -TEXT:] for t in (q, k, v)))
        return torch.cat([video, text], dim=1)


class Function:
    """An object that is called as a kernel, as that of LTX-2 is."""

    def __call__(self, q, k, v, heads, mask=None):
        return attention(q, k, v, heads, mask)


class KernelModule(nn.Module):
    """A module that is a kernel, as in DiffSynth-Studio."""

    def forward(self, q, k, v, heads, mask=None):
        return attention(q, k, v, heads, mask)


class Processor:
    """An object that has a kernel."""

    def attend(self, q, k, v, heads, mask=None):
        return attention(q, k, v, heads, mask)


class Holding(Attention):
    """Attention that holds its kernel."""

    def __init__(self, kind):
        super().__init__("b l (h d)", "b l (h d)")
        self.function, self.processor, self.core = Function(), Processor(), KernelModule()
        self.kind, self.number = kind, 2

    def method(self, q, k, v, heads, mask=None):
        return attention(q, k, v, heads, mask)

    def kernel(self, q, k, v, mask):
        call = {"object": self.function, "module": self.core, "method": self.method, "part": self.processor.attend}
        return call[self.kind](*(arranged(tensor, "b l h d", "b l (h d)") for tensor in (q, k, v)), HEADS, mask)


def masked_attention(q, k, v, heads, mask):
    """A kernel for calls with a mask."""
    return attention(q, k, v, heads, mask)


class Choosing(Attention):
    """Attention that calls one function in the first layer, and another one in the others."""

    def __init__(self, first):
        super().__init__("b l (h d)", "b l (h d)")
        self.first, self.unmasked = first, Function()

    def kernel(self, q, k, v, mask):
        q, k, v = (arranged(tensor, "b l h d", "b l (h d)") for tensor in (q, k, v))
        return self.unmasked(q, k, v, HEADS) if self.first else masked_attention(q, k, v, HEADS, mask)


def choosing():
    """Makes attention that calls another function in every other block."""
    first = itertools.cycle((True, False))
    return lambda: Choosing(next(first))


def turn(x, turns):
    """Turn interleaved pairs of (batch, tokens, heads, head_dim)."""
    cos, sin = (table[:, None] for table in turns)
    left, right = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1).flatten(-2)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attn = attention
        self.norm = nn.LayerNorm(HEADS * HEAD_DIM)
        self.ff = nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM)

    def forward(self, x, turns, mask):
        x = x + self.attn(self.attn.argument(self.norm(x)), turns, mask)
        return x + self.ff(self.norm(x))


class KernelDiT(nn.Module):
    """`video` is (batch, channels, frames, height, width), in patches of 2 x 2. Text comes last, with padding."""

    def __init__(self, make):
        super().__init__()
        self.num_heads, self.head_dim = HEADS, HEAD_DIM
        self.embed = nn.Conv3d(3, HEADS * HEAD_DIM, (1, 2, 2), stride=(1, 2, 2))
        self.text_embed = nn.Linear(5, HEADS * HEAD_DIM)
        self.blocks = nn.ModuleList(Block(make()) for _ in range(2))
        self.out = nn.Linear(HEADS * HEAD_DIM, 3)

    def forward(self, video, text, text_lengths=None):
        x = self.embed(video)
        angles = angles_of(*x.shape[2:])
        x = torch.cat([x.flatten(2).mT, self.text_embed(text)], dim=1)
        angles = torch.cat([angles, torch.zeros(text.shape[1], angles.shape[1])])
        tokens = torch.arange(x.shape[1]) - len(angles) + text.shape[1]
        mask = None if text_lengths is None else (tokens < text_lengths[:, None])[:, None, None]
        for block in self.blocks:
            x = block(x, (angles.cos(), angles.sin()), mask)
        return self.out(x[:, : -text.shape[1]])


TIME, SPACE = frequencies(HEAD_DIM - 4 * (HEAD_DIM // 6), 10_000.0), frequencies(2 * (HEAD_DIM // 6), 10_000.0)


def angles_of(frames, height, width):
    """Radians of the pairs (time, rows, columns) of each token."""
    places = torch.meshgrid(*(torch.arange(size) for size in (frames, height, width)), indexing="ij")
    speeds = (TIME, SPACE, SPACE)
    angles = [place.flatten()[:, None] * speed for place, speed in zip(places, speeds, strict=True)]
    return torch.cat(angles, dim=1).float()


TEMPORAL, SPATIAL = axis_by_axis(TIME, SPACE, SPACE)
FACTS = Facts(
    blocks("blocks.*.attn"), interleaved(HEAD_DIM), TEMPORAL, SPATIAL, text="last", rotary=(1,), tolerance=1e-5
)


def adapter(kernel):
    """The adapter of a model whose attention calls this kernel."""
    site = AttentionSite(
        "blocks.*.attn",
        kernel=kernel,
        text="last",
        text_tokens="transformer.text",
        joint=True,
        hidden_states="streams.0" if kernel is LISTING else "",
    )
    return Adapter(
        name="kernel-double",
        family="kernel-double",
        classes=("kernel_double.KernelDiT",),
        sites=(site,),
        grid=TokenGrid("video", patch=(1, 2, 2)),
        rope=TemporalRope(channels=2 * len(TIME), tables="turns"),
        heads="num_heads",
        head_dim="head_dim",
    )


def inputs(frames, height, width, batch):
    return {
        "video": noise(batch, 3, frames, 2 * height, 2 * width),
        "text": noise(batch, TEXT, 5),
        "text_lengths": torch.tensor([TEXT, TEXT - 2])[:batch],
    }


def example(make):
    """An example of a model whose attention modules this function makes."""
    return Example("kernel-double", lambda: random_model(lambda: KernelDiT(make)), inputs, video="video")


def between(layout, output):
    """(how to make the attention, its kernel) for each pair of layouts."""
    kernel = Kernel(
        function="attention",
        layout=layout,
        output="" if output == layout else output,
        arguments=("q", "k", "v", "heads", "mask", "layout", "output"),
        query="q",
        key="k",
        value="v",
        mask="mask",
        heads="heads" if layout == "b l (h d)" else None,
    )
    return functools.partial(Attention, layout, output), kernel


RESHAPING = Kernel(
    function="reshaping_attention",
    layout="b l (h d)",
    arguments=("q", "k", "v", "heads", "mask", "skip_reshape", "precision"),
    query="q",
    key="k",
    value="v",
    heads="heads",
    mask="mask",
    mask_axes="b q k",
    neutral={"skip_reshape": False},
)
SKIPPING = replace(
    RESHAPING, layout="b h l d", output="b l (h d)", heads=None, neutral={}, required={"skip_reshape": True}
)


def alternating():
    """Makes attention that calls its kernel in one layout in every other block."""
    skips = itertools.cycle((False, True))
    return lambda: Reshaping(next(skips))


KERNELS = {f"{layout} to {output}": between(layout, output) for layout in LAYOUTS for output in LAYOUTS}
LISTING = Kernel(
    function="list_attention",
    layout="b l h d",
    arguments=("qkv", "drop_rate"),
    query="qkv.0",
    key="qkv.1",
    value="qkv.2",
    neutral={"drop_rate": 0.0},
)

PAIRING = Kernel(
    function="pair_attention",
    layout="b l h d",
    output="b l (h d)",
    arguments=("q", "k", "v", "text_mask", "mode"),
    query=("q.0", "q.1"),
    key=("k.0", "k.1"),
    value=("v.0", "v.1"),
    mask="text_mask",
    mask_axes="b t",
    required={"mode": "flash"},
)
PARTING = Kernel(
    function="part_attention",
    layout="b l h d",
    output_parts=True,
    arguments=("q", "k", "v", "text_q", "text_k", "text_v"),
    query=("q", "text_q"),
    key=("k", "text_k"),
    value=("v", "text_v"),
)

PLACES = {"object": ".function", "module": ".core", "method": ".method", "part": ".processor.attend"}


def holding(kind):
    """(how to make the attention, its kernel) of a module that holds its kernel."""
    kernel = Kernel(
        function=PLACES[kind],
        layout="b l (h d)",
        arguments=("q", "k", "v", "heads", "mask"),
        query="q",
        key="k",
        value="v",
        heads="heads",
        mask="mask",
    )
    return functools.partial(Holding, kind), kernel


KERNELS |= {f"held: {kind}": holding(kind) for kind in PLACES}
UNMASKED = replace(holding("object")[1], function=".unmasked")
MASKED = replace(UNMASKED, function="masked_attention")

KERNELS |= {
    "two functions": (choosing(), (UNMASKED, MASKED)),
    "one of two functions": (lambda: Choosing(True), (UNMASKED, replace(MASKED, function="not_there"))),
    "the other of two functions": (lambda: Choosing(False), (replace(MASKED, function=".not_there"), MASKED)),
    "pairs": (Pairing, PAIRING),
    "parts": (lambda: Parting(True), PARTING),
    "no second part": (lambda: Parting(False), PARTING),
    "a list": (Listing, LISTING),
    "an argument left out": (lambda: Reshaping(False), RESHAPING),
    "an argument given": (lambda: Reshaping(True), SKIPPING),
    "one or the other": (alternating(), (RESHAPING, SKIPPING)),
}
"""(how to make the attention, its kernel or kernels) by what it shows."""
