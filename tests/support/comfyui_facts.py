"""The positions of ComfyUI's models, as small as in comfyui_models.py, from papers and code and not from adapters."""

from dataclasses import replace

import torch
from dense import Facts, axis_by_axis, blocks, frequencies, half_split, interleaved
from families import ltx


def still_matrices(table):
    return torch.eye(2).expand_as(table).contiguous()


def split(sizes, theta=10_000.0, factors=(1.0, 1.0, 1.0)):
    """`temporal` and `spatial` of a head split for time, rows and columns, whose positions have these factors."""
    return axis_by_axis(*[frequencies(size, theta) * factor for size, factor in zip(sizes, factors, strict=True)])


def wan(*paths, **changes):
    where = blocks("blocks.*.self_attn", *paths)
    return Facts(where, interleaved(24), *split((8, 8, 8)), rotary=(1,), still=still_matrices, **changes)


def hunyuan(*paths):
    where = blocks(*paths)
    known = split((8, 8, 8), theta=256.0)
    return Facts(where, interleaved(24), *known, text="first", rotary=("pe",), still=still_matrices)


def cogvideox(factor):
    known = split((8, 12, 12), factors=(1.0, factor, factor))
    return Facts(blocks("blocks.*"), interleaved(32), *known, text="first")


def cosmos(fps):
    """Twice the base, to the power of n / (n - 2), on the axis of time, which runs at 24 frames per second."""
    base = 10_000.0 * 2.0 ** (8 / 6)
    temporal, spatial = axis_by_axis(frequencies(8, base) * 24 / fps, *[frequencies(8, 10_000.0)] * 2)
    where = blocks("blocks.*.self_attn")
    return Facts(where, half_split(24), temporal, spatial, rotary=("rope_emb",), still=still_matrices, spacing=24 / fps)


def learned(weights):
    """Mochi, from its weights (3, heads, pairs). The centres of tokens are as in diffusers."""
    time, row, column = weights.double()

    def spatial(height, width):
        token = 192 / (height * width) ** 0.5
        rows = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) * token
        columns = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) * token
        angles = rows[:, None, None, None] * row + columns[:, None, None] * column
        return angles.flatten(0, 1).movedim(1, 0)

    still = {"rope_cos": torch.ones_like, "rope_sin": torch.zeros_like}
    return Facts(blocks("blocks.*.attn"), interleaved(24), time, spatial, rotary=tuple(still), still=still)


def uniform(frames, rate):
    return torch.arange(frames).float() * 8 * (1 / rate)


def middles(frames, rate):
    starts, ends = [((torch.arange(frames) + late) * 8.0 - 7).clamp(min=0) * (1 / rate) for late in (0, 1)]
    return (starts + ends) / 2


def seconds(*own, rate):
    found = ltx.facts(*own, rotary=("pe",), trained_rate=rate, rate=rate)
    return replace(found, still=lambda pe: (still_matrices(pe[0]), pe[1]))


KANDINSKY = Facts(
    blocks("visual_transformer_blocks.*.self_attention"),
    interleaved(24),
    *split((8, 8, 8), factors=(1.0, 0.5, 0.5)),
    rotary=(1,),
    still=still_matrices,
)

FACTS = {
    "comfyui-wan": wan(),
    "comfyui-wan-i2v": wan(),
    "comfyui-wan-camera": wan(),
    "comfyui-wan-vace": wan("vace_blocks.*.self_attn", layers=(0, 1, 2, 3, 0, 2)),
    "comfyui-wan-animate": wan(references=1),
    "comfyui-wan-s2v": wan(),
    "comfyui-wan-humo": wan(),
    "comfyui-wan-scail": wan(),
    "comfyui-wan-scail2": wan(),
    "comfyui-wandancer": wan(),
    "comfyui-hunyuan-video": hunyuan("double_blocks.*", "single_blocks.*"),
    "comfyui-hunyuan-video-1.5": hunyuan("double_blocks.*"),
    "comfyui-cogvideox": cogvideox(1.875),
    "comfyui-cogvideox-1.5": cogvideox(1.0),
    "comfyui-cogvideox-2b": Facts.without_rope(blocks("blocks.*"), text="first"),
    "comfyui-mochi": lambda model: learned(model.pos_frequencies),
    "comfyui-kandinsky5": KANDINSKY,
    "comfyui-cosmos-predict2": cosmos(fps=20),
    "comfyui-ltx": seconds(interleaved(20), uniform, 0, torch.float32, rate=25),
    "comfyui-ltx-2": seconds(half_split(20), middles, 0.5, torch.float64, rate=24),
}
"""By the name of the example; a function of the model where its weights are learned frequencies."""


def facts_of(name, model):
    known = FACTS[name]
    return known if isinstance(known, Facts) else known(model)
