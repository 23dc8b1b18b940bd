"""Several processes share a patched model: two processes give what one gives, or an error that says why not."""

import importlib.util
import itertools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_profile, wan_inputs
from shared_models import make, per_head
from torch.overrides import TorchFunctionMode
from two_processes import measured

import freeloc
from freeloc.attention import TokenLayout
from freeloc.errors import LayoutError
from freeloc.interception.kernel_call import KernelCall
from freeloc.interception.parallel import Share, as_gathered, in_layout
from freeloc.testing import noise

has_cache_dit = pytest.mark.skipif(
    importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed: pip install cache-dit==1.5.3"
)


def label(case: dict[str, Any]) -> str:
    return ", ".join(str(value) for name, value in case.items() if value and name != "error")


def check(case: dict[str, Any]) -> None:
    """What two processes give is what one gives, with a correction that is far larger; or the error of the case."""
    found = case["found"]
    if "error" in case:
        for each in (found, found["other"]):
            assert each.get("error") in ("LayoutError", "ProbeError"), each
            assert re.search(case["error"], each["message"]), each["message"]
        return
    assert "error" not in found, found["trace"]
    assert found["correction"] > 1e-2
    assert found.get("alone", 0) < 1e-5  # the library itself
    assert found["two"] < 1e-5
    assert found["other"]["two"] < 1e-5
    assert found.get("after", 0) < 1e-5


class Group:
    """Cases that run in the same two processes, when the first of them is asked for."""

    def __init__(self, *cases: dict[str, Any]) -> None:
        self.cases = cases
        self._found: list[dict[str, Any]] = []
        self._asked = False

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not self._asked:  # only once, also if the processes hang
            self._asked = True
            self._found = measured(list(self.cases))
        assert self._found, "the two processes ended early: see the first test of this group"
        return self.cases[number] | {"found": self._found[number]}

    def parametrized(self) -> pytest.MarkDecorator:
        return pytest.mark.parametrize("number", range(len(self.cases)), ids=[label(case) for case in self.cases])


def sampling(model: str, library: str, method: str = "", order: str = "share first", **more: Any) -> dict[str, Any]:
    return {"model": model, "library": library, "method": method, "order": order} | more


SHORT = Group(
    sampling("wan of 4", "diffusers", "heads"),
    sampling("hunyuan-video", "diffusers", order="patch first"),
    sampling("ltx", "diffusers", "heads", text="no mask"),
    sampling("cogvideox", "tensor", "heads"),
    sampling("wan-original", "fsdp2"),
    sampling("fastvideo", "fastvideo"),
    sampling("fastvideo", "fastvideo", order="patch first", text="odd"),
    sampling("wan-original", "wan"),
    sampling("wan-original", "wan", "tsa", order="patch first"),
    sampling("wan-original", "wan", "heads") | {"error": "freeloc cannot find out which heads they are"},
)


@SHORT.parametrized()
def test_two_processes_give_what_one_gives(number):
    check(SHORT[number])


DIFFUSERS = Group(
    sampling("wan of 4", "diffusers"),
    sampling("wan of 4", "diffusers", "profile per head"),
    sampling("wan of 4", "diffusers", "tsa", "patch first"),
    sampling("wan of 3", "diffusers", "heads", kind="anything"),
    sampling("hunyuan-video", "diffusers"),
    sampling("hunyuan-video", "diffusers", "heads", "patch first"),
    sampling("hunyuan-video", "diffusers", "sliding-window"),
    sampling("motif-video", "diffusers", "heads", text="no mask"),
    sampling("ltx", "diffusers", order="patch first", text="no mask"),
    sampling("wan of 4", "diffusers", unknown="unknown"),
    sampling("wan of 4", "diffusers", "heads", compiled="compiled"),
    sampling("hunyuan-video", "diffusers", compiled="compiled"),
)


@pytest.mark.slow
@DIFFUSERS.parametrized()
def test_ulysses_of_diffusers(number):
    check(DIFFUSERS[number])


RING = "in a ring of 2 processes.*Use Ulysses instead"
GRADIENTS = "WanTransformer3DModel needs gradients, and its library computes those of its attention itself"
WHOLE = "expected a whole .*WanTransformer3DModel in each process, found one that several processes share"
CACHE_DIT = Group(
    sampling("wan of 4", "cache-dit"),
    sampling("wan of 4", "cache-dit", "profile per head", "patch first"),
    sampling("hunyuan-video", "cache-dit", "heads", "patch first"),
    sampling("hunyuan-video", "cache-dit", text="padded"),
    sampling("hunyuan-video", "cache-dit", "profile per head", text="padded"),
    sampling("cogvideox", "cache-dit"),
    sampling("cogvideox", "cache-dit", "heads", "patch first"),
    sampling("consisid", "cache-dit", "heads"),
    sampling("ltx", "cache-dit", "heads", text="padded"),
    sampling("ltx", "cache-dit", order="patch first"),
    sampling("ltx-2", "cache-dit", "heads"),
    sampling("skyreels-v2", "cache-dit"),
    sampling("hunyuan-video", "cache-dit", "heads", text="padded", batch=2),
    sampling("cogvideox", "cache-dit", batch=2),
    {"model": "wan of 4", "library": "cache-dit", "kind": "ring", "error": RING},
    {"does": "training", "model": "wan of 4", "library": "cache-dit", "error": GRADIENTS},
)


CACHED = Group(*({"does": "caching", "order": order} for order in ("cache first", "patch first")))


@pytest.mark.slow
@has_cache_dit
@CACHED.parametrized()
def test_a_cache_of_cache_dit_under_its_ulysses(number):
    case = CACHED[number]
    check(case)
    assert case["found"]["skips"] > 0


@pytest.mark.slow
@has_cache_dit
@CACHE_DIT.parametrized()
def test_ulysses_of_cache_dit(number):
    check(CACHE_DIT[number])


WEIGHTS = Group(
    *(
        sampling(model, "tensor", "heads", order)
        for model in ("wan of 4", "cogvideox")
        for order in ("", "patch first")
    ),
    *(sampling(model, kind) for model in ("wan of 4", "hunyuan-video", "ltx") for kind in ("fsdp1", "fsdp2")),
    *({"does": "training", "model": "wan of 4", "library": library} for library in ("tensor", "fsdp1", "fsdp2")),
)


@pytest.mark.slow
@WEIGHTS.parametrized()
def test_split_weights(number):
    check(WEIGHTS[number])


REFUSED = Group(
    {"model": "wan of 4", "library": "diffusers", "kind": "ring", "error": RING},
    {"model": "hunyuan-video", "library": "diffusers", "kind": "ring", "error": RING},
    {"model": "hunyuan-video", "library": "diffusers", "text": "padded", "error": "mask hides tokens of the video"},
    sampling("wan of 4", "diffusers", "heads", unknown="unknown", error="which heads they are"),
    sampling("hunyuan-video", "diffusers", unknown="unknown", error="the order of 4 tokens of text among the video"),
    sampling("ltx", "diffusers", text="no mask", unknown="unknown", error="which heads they are"),
    {"does": "training", "model": "wan of 4", "library": "diffusers", "error": GRADIENTS},
    {"does": "training", "model": "wan of 4", "library": "diffusers", "checkpoints": True, "error": GRADIENTS},
    {
        "does": "fresh processors",
        "model": "wan of 4",
        "library": "diffusers",
        "error": "found 96, those of one process: its attention processor knows nothing",
    },
    {
        "does": "fresh processors",
        "model": "ltx",
        "library": "diffusers",
        "error": "found 96, those of one process: its attention processor knows nothing",
    },
    {
        "does": "fresh processors",
        "model": "hunyuan-video",
        "library": "diffusers",
        "error": "found 98, those of one process: its attention processor knows nothing",
    },
    *(
        {"does": "probing", "model": "wan of 4", "library": library, "depth": depth, "error": WHOLE}
        for library, depth in [("diffusers", "output"), ("tensor", "local"), ("fsdp1", "local"), ("fsdp2", "output")]
    ),
)


@pytest.mark.slow
@REFUSED.parametrized()
def test_refused(number):
    check(REFUSED[number])


TRAINED = Group({"does": "training", "model": "wan of 4", "library": "diffusers", "frames": 4})


@pytest.mark.slow
def test_a_model_at_its_trained_length_trains_under_ulysses():
    found = TRAINED[0]["found"]
    assert found["correction"] == 0
    assert found["two"] < 1e-5


LAYOUTS = [TokenLayout(4, 2, 2), TokenLayout(4, 2, 2, 8), TokenLayout(4, 2, 2, 0, 4), TokenLayout(4, 2, 2, 4, 8)]


def gathered_order(layout: TokenLayout, degree: int) -> list[int]:
    """Where each token of the gathered sequence is in the layout, one token after the other."""
    starts = 0, layout.video.start, layout.video.stop, layout.tokens
    order = []
    for rank in range(degree):
        for start, stop in itertools.pairwise(starts):
            count = (stop - start) // degree
            order += range(start + rank * count, start + (rank + 1) * count)
    return order


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.text_first} and {layout.text_last} of text")
@pytest.mark.parametrize("degree", [2, 4])
def test_tokens_are_put_in_order_and_back(layout, degree):
    share, order = Share(1, degree, True), gathered_order(layout, degree)
    query, key, value = (noise(2, 3, layout.tokens, 5) + number for number in range(3))
    mask = torch.ones(2, 1, 1, layout.tokens, dtype=torch.bool)
    mask[..., layout.text_at] = noise(2, 1, 1, len(layout.text_at)) > 0
    both = torch.where(mask, 0.0, -torch.inf) + noise(2, 3, layout.tokens, 1)
    for given in (None, mask, both):
        moved = None if given is None else given[..., order]
        moved = moved[:, :, order] if moved is not None and moved.shape[2] > 1 else moved
        tensors = [tensor[:, :, order] for tensor in (query, key, value)]
        found = in_layout(KernelCall(*tensors, moved, None, 0.5), layout, share)
        for one, expected in zip(found[:4], (query, key, value, given), strict=True):
            assert one is expected is None or torch.equal(one, expected)
        assert found.scale == 0.5
    assert torch.equal(as_gathered(query, layout, share), query[:, :, order])


@pytest.mark.parametrize(
    ("layout", "mask", "message"),
    [
        (TokenLayout(3, 3, 3, 0, 3), None, "that divide among 2 processes, found 27 of video"),
        (TokenLayout(4, 2, 2, 2, 3), None, "found 5 of text: pad or cut the text"),
        (TokenLayout(4, 2, 2, 0, 4), torch.arange(20) < 18, "the attention mask hides tokens of the video"),
        (TokenLayout(4, 2, 2, 0, 4), -1e4 * (torch.arange(20) >= 18), "the attention mask hides tokens of the video"),
    ],
)
def test_what_has_no_order_is_refused(layout, mask, message):
    tensors = (noise(1, 2, layout.tokens, 4),) * 3
    masks = None if mask is None else mask.expand(1, 1, 1, -1)
    order = gathered_order(TokenLayout(4, 2, 2, 0, 4), 2)
    if mask is not None:  # hidden are the last tokens of the text of each process, or, with this order, some video
        in_layout(KernelCall(*tensors, masks[..., order], None, None), layout, Share(0, 2, True))
        masks = masks.roll(-8, -1)
    with pytest.raises(LayoutError, match=message):
        in_layout(KernelCall(*tensors, masks, None, None), layout, Share(0, 2, True))


@pytest.mark.parametrize(("count", "degree"), [(12, 2), (3, 2), (2, 4), (40, 8)])
def test_every_head_belongs_to_one_process(count, degree):
    shares = [Share(rank, degree, True).heads(count) for rank in range(degree)]
    assert [head for heads in shares for head in heads] == list(range(count))


class InHalves(TorchFunctionMode):
    """Computes half of the heads at a time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or "query" not in (kwargs or {}):  # that is other attention
            return func(*args, **(kwargs or {}))
        tensors = {name: kwargs.pop(name).chunk(2, 1) for name in ("query", "key", "value")}
        parts = [{name: halves[half] for name, halves in tensors.items()} for half in range(2)]
        return torch.cat([func(**part, **kwargs) for part in parts], 1)


def with_halves(name: str) -> tuple[Any, dict[str, Any], freeloc.Profile]:
    """A small model whose calls have half of the heads each, as where an unknown library shares them."""
    model, given = make(name)
    for module in model.modules():
        if processor := getattr(module, "processor", None):
            kind = type(processor)

            class Halved(kind):
                def __call__(self, *args: Any, **kwargs: Any) -> Any:
                    with InHalves():
                        return super().__call__(*args, **kwargs)

            processor.__class__ = Halved
    return model, given, freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)


def test_calls_with_some_heads_of_one_plan_are_right():
    model, given, profile = with_halves("wan of 4")
    whole, _ = make("wan of 4")
    with torch.no_grad():
        with freeloc.patch(whole, profile):
            expected = whole(**given)[0]
        with freeloc.patch(model, profile) as patch:
            assert (model(**given)[0] - expected).abs().max() < 1e-5
    assert patch.report().corrected_calls == 8
    assert "this process computes some of 4 heads" in str(patch.report())


@pytest.mark.parametrize(("name", "method"), [("wan of 4", per_head), ("ltx", None)])
def test_heads_that_nobody_can_tell_apart_are_refused(name, method):
    model, given, profile = with_halves(name)
    patched = freeloc.patch(model, profile, method=method)
    with torch.no_grad(), patched, pytest.raises(LayoutError, match="cannot find out which heads they are"):
        model(**given)


def test_a_function_with_gradients_of_its_own_is_refused_only_if_they_are_needed(small_wan):
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            return F.scaled_dot_product_attention(*tensors)

    class Inside(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.scaled_dot_product_attention:
                return Own.apply(*(kwargs[name] for name in ("query", "key", "value")))
            return func(*args, **(kwargs or {}))

    kind = type(small_wan.blocks[0].attn1.processor)

    class WithOwnGradients(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with Inside():
                return super().__call__(*args, **kwargs)

    with freeloc.patch(small_wan, make_profile()):
        expected = small_wan(**wan_inputs(9))[0]
    for block in small_wan.blocks:
        block.attn1.set_processor(WithOwnGradients())
    with freeloc.patch(small_wan, make_profile()):
        assert torch.equal(small_wan(**wan_inputs(9))[0], expected)
        small_wan.requires_grad_(True)
        with torch.no_grad():
            assert torch.equal(small_wan(**wan_inputs(9))[0], expected)
        small_wan(**wan_inputs(3))  # at the trained length, the model's own attention runs
        with pytest.raises(LayoutError, match="WanAttention needs gradients, and its library computes those"):
            small_wan(**wan_inputs(9))
