"""The measures of one attention call against a brute-force computation of every logit."""

import dataclasses

import pytest
import torch
from torch import Tensor

from freeloc import FreelocError
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout
from freeloc.interception.watch import LayerCall
from freeloc.probing import measures, perturbations
from freeloc.probing.measures import context, logits_difference

FRAMES, HEIGHT, WIDTH, HEADS, DIM = 7, 2, 3, 2, 24
SHIFTS = (-40, -20, 3, 20)


def seen(
    dtype: torch.dtype = torch.float64, pairing: str = "(pair two)", per_head: bool = False, **changes
) -> LayerCall:
    layout = TokenLayout(FRAMES, HEIGHT, WIDTH, text_first=2, text_last=3)
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, 2, HEADS, layout.tokens, DIM, generator=generator, dtype=torch.float64)
    query, key, value = (2 * tensors).to(dtype)
    rope = TemporalRope(channels=8, first=2, pairing=pairing)
    frequencies = rope.frequencies(DIM)
    if per_head:
        frequencies = torch.stack([frequencies, frequencies / 3])
    call = LayerCall(0, query, key, value, layout, None, None, rope, frequencies)
    return dataclasses.replace(call, **changes)


def video_logits(call: LayerCall, shift: float = 0.0) -> Tensor:
    """(batch, heads, video tokens, video tokens) with every key moved, each channel written out."""
    query, key = (tensor[:, :, call.layout.video].double() for tensor in (call.query, call.key))
    frequencies = call.frequencies.expand(HEADS, -1)
    moved = key.clone()
    for head in range(HEADS):
        for pair in range(frequencies.shape[1]):
            first = call.rope.first
            both = (
                (first + 2 * pair, first + 2 * pair + 1)
                if call.rope.pairing == "(pair two)"
                else (first + pair, first + 4 + pair)
            )
            angle = shift * frequencies[head, pair]
            x, y = key[:, head, :, both[0]], key[:, head, :, both[1]]
            moved[:, head, :, both[0]] = x * angle.cos() - y * angle.sin()
            moved[:, head, :, both[1]] = x * angle.sin() + y * angle.cos()
    return query @ moved.mT


@pytest.mark.parametrize("pairing", ["(pair two)", "(two pair)"])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_gram_matrices_give_the_difference_of_all_logits(
    pairing: str, per_head: bool, dtype: torch.dtype, tolerance: float
) -> None:
    call = seen(dtype, pairing, per_head)
    plain = video_logits(call)
    expected = torch.stack(
        [
            (video_logits(call, s) - plain).transpose(0, 1).flatten(1).norm(dim=1)
            / plain.transpose(0, 1).flatten(1).norm(dim=1)
            for s in SHIFTS
        ],
        dim=1,
    )
    found = logits_difference(call, SHIFTS)
    assert (found - expected).abs().max() < tolerance
    assert found.min() > 0.01  # far from nothing


def test_a_model_without_rope_has_no_difference() -> None:
    assert logits_difference(seen(rope=None), SHIFTS).eq(0).all()


def masks() -> dict[str, Tensor | None]:
    tokens = 5 + FRAMES * HEIGHT * WIDTH
    keys = torch.ones(2, 1, 1, tokens, dtype=torch.bool)
    keys[1, ..., -3:] = False
    bias = torch.randn(1, HEADS, tokens, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return {"none": None, "keys": keys, "bias": bias, "rows": bias[0, 0]}


def by_brute_force(call: LayerCall, window: Tensor, trained: int) -> dict[str, Tensor]:
    """(heads,) each, from the whole table of probabilities."""
    layout = call.layout
    logits = call.query.double() @ call.key.double().mT * (DIM**-0.5 if call.scale is None else call.scale)
    if call.mask is not None:
        logits = logits.masked_fill(~call.mask, -torch.inf) if call.mask.dtype == torch.bool else logits + call.mask
    frame = torch.full((layout.tokens,), -1)
    frame[layout.video] = torch.arange(FRAMES).repeat_interleave(HEIGHT * WIDTH)
    rows = frame >= 0
    near = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
    for i in range(layout.tokens):
        for j in range(layout.tokens):
            if frame[i] >= 0 and frame[j] >= 0:
                near[i, j] = window[frame[i], frame[j]]

    def entropy(logits: Tensor) -> Tensor:
        weights = logits.softmax(dim=-1)
        return -torch.special.xlogy(weights, weights).sum(dim=-1)[:, :, rows]

    whole, windowed = entropy(logits), entropy(logits.masked_fill(~near, -torch.inf))
    weights = logits.softmax(dim=-1)[:, :, rows][..., rows]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    distance = (frame[rows][:, None] - frame[rows]).abs().double()
    flat = [(0, 2)]
    return {
        "entropy": whole.mean(dim=flat[0]),
        "windowed": windowed.mean(dim=flat[0]),
        "change": (windowed - whole).square().sum(dim=flat[0]).sqrt() / whole.square().sum(dim=flat[0]).sqrt(),
        "beyond": (weights * (distance > trained - 1)).sum(dim=-1).mean(dim=flat[0]),
        "distance": (weights * distance).sum(dim=-1).mean(dim=flat[0]),
    }


@pytest.mark.parametrize("name", list(masks()))
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_spread_of_attention_by_brute_force(
    name: str, scale: float | None, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "LARGEST_BLOCK", 700)  # several blocks of rows
    mask = masks()[name]
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    call = seen(dtype, mask=mask, scale=scale)
    window = torch.ones(FRAMES, FRAMES).tril(1).triu(-1).bool()
    found = context(call, window, trained_frames=3, rows=None)
    for measure, expected in by_brute_force(call, window, trained=3).items():
        assert (getattr(found, measure) - expected).abs().max() < tolerance, measure
        assert found.errors[measure].eq(0).all()


def test_a_sample_of_rows_is_near_the_truth_by_its_own_error() -> None:
    call = seen()
    window = torch.ones(FRAMES, FRAMES).tril(1).triu(-1).bool()
    exact = context(call, window, trained_frames=3, rows=None)
    off = {name: [] for name in exact.errors}
    for seed in range(200):
        found = context(call, window, trained_frames=3, rows=14, seed=seed)
        for name, error in found.errors.items():
            off[name].append((getattr(found, name) - getattr(exact, name)) / error)
    for name, values in off.items():
        spread = torch.stack(values).square().mean().sqrt()
        assert 0.6 < spread < 1.6, (name, spread)  # in standard errors


def test_memory_holds_no_table_of_all_pairs() -> None:
    """There would be 6 GB of logits per head; blocks of at most 32 MB are made."""
    layout = TokenLayout(frames=40, height=20, width=50)
    query, key = torch.randn(2, 1, 1, layout.tokens, 8)
    call = LayerCall(
        0, query, key, key, layout, None, None, TemporalRope(channels=8), TemporalRope(channels=8).frequencies(8)
    )
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Largest():
        logits_difference(call, SHIFTS)
        context(call, torch.ones(40, 40).tril(5).triu(-5).bool(), trained_frames=21, rows=400)
    assert max(sizes) <= measures.LARGEST_BLOCK
    assert max(sizes) > layout.tokens  # it did see the logits


def test_perturbations() -> None:
    assert perturbations.default_shifts(21) == (-40, -20, 20, 40)
    assert perturbations.default_shifts(49) == (-96, -48, 48, 96)
    assert perturbations.names((-20, 40)) == ["-20", "+40", "window"]
    for wrong in ((), (0,), (20, 20)):
        with pytest.raises(FreelocError, match="expected shifts other than 0, each once"):
            perturbations.names(wrong)
    plan = perturbations.perturbed("+20", 30, trained_frames=21)
    assert plan.positions[3, 5] == 3 - (5 + 20)
    assert plan.visibility.eq(2).all()
    window = perturbations.perturbed("window", 30, trained_frames=21)
    assert window.visibility.sum(dim=1).eq(2 * 21).all()
