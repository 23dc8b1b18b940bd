"""The weight of places: by its definition, in any order of axes, and in the losses of clips."""

import math
from typing import Any

import pytest
import torch
from conftest import make_wan, wan_inputs
from small_probe import PROFILE, clips, run_of
from torch import Tensor

import freeloc
from freeloc.discovery import find_adapter
from freeloc.errors import ProbeError
from freeloc.probing import Loss
from freeloc.probing.calls import Call
from freeloc.probing.places import axes_of, motion_weight
from freeloc.registry import registry


def moving_dot(frames: int = 6) -> Tensor:
    """A still picture with much detail, and a small dot that moves right by one place per frame."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 1, 8, 12, generator=generator).repeat(1, frames, 1, 1)
    for frame in range(frames):
        latents[:, frame, 3, 2 + frame] += 2.0
    return latents


def slow_weight(latents: Tensor) -> Tensor:
    """The definition, place by place, (frames, height, width)."""
    channels, frames, height, width = latents.shape
    found = torch.zeros(frames, height, width, dtype=torch.float64)
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                rows, columns = range(max(y - 1, 0), min(y + 2, height)), range(max(x - 1, 0), min(x + 2, width))
                motion, variance = [], []
                for other in (t - 1, t + 1):
                    if 0 <= other < frames:
                        motion += [
                            float((latents[:, other, r, c] - latents[:, t, r, c]).square().mean())
                            for r in rows
                            for c in columns
                        ]
                for channel in range(channels):
                    values = torch.tensor([float(latents[channel, t, r, c]) for r in rows for c in columns])
                    variance.append(float(values.double().var(unbiased=False)))
                found[t, y, x] = math.sqrt(
                    math.sqrt(sum(motion) / len(motion)) * math.sqrt(sum(variance) / len(variance))
                )
    return found / found.mean()


def test_the_weight_is_its_definition() -> None:
    latents = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    weight = motion_weight(latents)
    assert weight.dtype == torch.float32
    assert torch.equal(weight[0], weight[1])
    assert torch.allclose(weight[0].double(), slow_weight(latents), atol=1e-5)


def test_what_moves_has_the_weight() -> None:
    latents = moving_dot()
    weight = motion_weight(latents)
    assert float(weight.mean()) == pytest.approx(1)
    near = torch.zeros(8, 12, dtype=torch.bool)
    near[2:5, 1:9] = True
    assert (weight[..., ~near] == 0).all()  # detail that stands still
    assert float(weight[0, 2, 3, 4]) > 4
    light = torch.linspace(0, 1, 5)[None, :, None, None].expand(2, 5, 8, 8) + 0.3  # plain, and ever lighter
    assert (motion_weight(light) == 1).all()
    picture = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 5, 1, 1)
    assert (motion_weight(picture) == 1).all()  # where nothing moves, all places count
    assert (motion_weight(picture[:, :1]) == 1).all()
    assert torch.allclose(motion_weight(1000 * latents), weight)


def test_any_order_of_axes_and_number_of_channels() -> None:
    latents = torch.cat([moving_dot(), moving_dot()])[:5]  # (5, 6, 8, 12)
    weight = motion_weight(latents)
    assert torch.equal(motion_weight(latents.transpose(0, 1), "f c h w").transpose(0, 1), weight)
    assert torch.equal(motion_weight(latents.movedim(0, -1), "f h w c").movedim(-1, 0), weight)
    tokens = latents.movedim(0, -1).flatten(0, 2)
    found = motion_weight(tokens, "(f h w) c", f=6, h=8, w=12)
    assert torch.equal(found.view(6, 8, 12, 5).movedim(-1, 0), weight)
    other = torch.randn(5, 6, 8, 12, generator=torch.Generator().manual_seed(2))
    both = motion_weight(torch.stack([latents, other]), "b c f h w")
    assert torch.allclose(both[0], weight)
    assert torch.allclose(both[1], motion_weight(other))
    assert motion_weight(torch.ones(1, 1, 1, 1)).tolist() == [[[[1.0]]]]


@pytest.mark.parametrize(
    ("shape", "axes", "sizes", "words"),
    [
        ((4, 3, 8, 8), "c f h", {}, "expected axes of b, c, f, h, w, each once .* found 'c f h'"),
        ((4, 3, 8, 8), "c f h x", {}, "found 'c f h x'"),
        ((4, 3, 8, 8), "c c f h w", {}, "each once"),
        ((4, 3, 8), "c f h w", {}, r"expected latents with the axes 'c f h w', found \(4, 3, 8\)"),
        ((48, 4), "(f h w) c", {"f": 5, "h": 2, "w": 3}, r"of sizes \{'f': 5, 'h': 2, 'w': 3\}, found \(48, 4\)"),
    ],
)
def test_latents_with_other_axes_are_refused(
    shape: tuple[int, ...], axes: str, sizes: dict[str, int], words: str
) -> None:
    with pytest.raises(ProbeError, match=words):
        motion_weight(torch.zeros(shape), axes, **sizes)


def test_the_adapter_says_which_axes_are_which() -> None:
    known = {example.label: example for _, _, example in registry().examples.things()}
    expected = {"wan": "c f h w", "cogvideox": "f c h w", "kandinsky5": "f h w c", "ltx": "(f h w) c"}
    for label, names in expected.items():
        model, inputs = known[label].model(), known[label].inputs(8, 2, 3, 1)
        sample = inputs["hidden_states"][0]
        axes = axes_of(Call(model, inputs), find_adapter(model), sample)
        assert axes.names == names
        assert motion_weight(sample, axes.names, **axes.sizes).shape == sample.shape
        assert axes.channels == {"c f h w": 1, "f c h w": 2, "f h w c": 4, "(f h w) c": 2}[names]
    assert axes.sizes == {"f": 8, "h": 2, "w": 3}
    call, adapter = Call(model, inputs), find_adapter(model)
    with pytest.raises(ProbeError, match=r"expected clips of 8 x 2 x 3 tokens, .* found the shape \(40, 4\)"):
        axes_of(call, adapter, sample[:40])
    with pytest.raises(ProbeError, match=r"found the shape \(4, 8, 6\): give each clip without its batch, or Loss"):
        axes_of(call, adapter, torch.zeros(4, 8, 6))


def test_both_losses_of_a_clip() -> None:
    model: Any = make_wan()
    depth = Loss(clips(), levels=(0.5,), compared=[("none", "tsa")])
    found = freeloc.probe(model, run_of(model), depth, profile=PROFILE)
    clean = clips()[1][None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1_000_003 + 500))
    given = wan_inputs(9, batch=1) | {"hidden_states": (clean + noise) / 2}
    error = (model(**given)[0] - (noise - clean)).square()[0]
    expected = {"loss.value": error.mean(), "loss.moving": (motion_weight(clips()[1]) * error).mean()}
    for table, loss in expected.items():
        own = found.table(table).at(rest="none", policies="none", layers=0, levels=0.5, clips="001").values
        assert float(own) == pytest.approx(float(loss), rel=1e-5)
    assert list(found.summary().columns()) == ["context", "context, moving"]


def test_axes_that_the_clips_do_not_have_are_refused() -> None:
    model: Any = make_wan()
    for axes, words in (
        ("f h w c d", "expected clips with the axes 'f h w c d'"),
        ("x c h w", "expected axes of b, c"),
    ):
        with pytest.raises(ProbeError, match=words):
            freeloc.probe(model, run_of(model), Loss(clips(), axes=axes), profile=PROFILE)
