"""The choice of a backend, by name, object or priority; what is refused; and the call for one layer without hooks."""

import copy
import re
from typing import NamedTuple

import pytest
import torch
from conftest import make_profile
from subjects import Subject

import freeloc
from freeloc import FramePlan, attend_layer
from freeloc.adapter import TemporalRope
from freeloc.attention import Backend, TokenLayout, attend, reference, sdpa
from freeloc.attention.prepared import PreparedPlan
from freeloc.cli import main
from freeloc.errors import FreelocError, LayoutError, PatchError, ProfileError, RegistryError
from freeloc.layer import attend as layer
from freeloc.patching import backends_named
from freeloc.plans.baselines import sliding_window
from freeloc.plans.vrpr import vrpr_plan
from freeloc.registry import registry

ROPE = TemporalRope(channels=8)


def never(*call):
    return "requires a CUDA device, found cpu"


def short_only(query, key, value, plan, layout, mask):
    return f"supports 9 latent frames, found {layout.frames}" if layout.frames > 9 else ""


@pytest.fixture
def register_backends(monkeypatch):
    """Registers backends as a plugin does."""

    def register(*backends, distribution="a package"):
        for backend in backends:
            owners = [*registry().backends.owners.get(backend.name, []), (distribution, backend)]
            monkeypatch.setitem(registry().backends.owners, backend.name, owners)

    return register


def used(patch):
    return set().union(*(line.backends for line in patch.report().layers))


class TestChoice:
    def test_by_name_and_by_object_the_output_and_the_report(self, small_wan, run):
        mine = Backend("mine", lambda *call: sdpa.attend(*call))
        found = {}
        for backend in ("auto", "sdpa", "reference", mine):
            with freeloc.patch(small_wan, make_profile(), backend=backend) as patch:
                name = backend if isinstance(backend, str) else backend.name
                found[name] = run(small_wan, 9)
                assert used(patch) == {"sdpa" if name == "auto" else name}
                assert f" {next(iter(used(patch))):9}  blocks.0.attn1" in str(patch.report())
        assert torch.equal(found["auto"], found["sdpa"])
        assert torch.equal(found["mine"], found["sdpa"])
        assert 0 < (found["reference"] - found["sdpa"]).abs().max() < 1e-4

    def test_an_unknown_name_is_refused_with_suggestions(self, small_wan):
        known = 'known: reference, sdpa, triton; or leave it at "auto"'
        words = f"no backend is named 'sdpaa'; did you mean sdpa? {known}"
        with pytest.raises(RegistryError, match=f"^{re.escape(words)}$"):
            freeloc.patch(small_wan, make_profile(), backend="sdpaa")
        assert not small_wan.blocks[0].attn1._forward_hooks

    def test_a_backend_of_another_type_is_refused(self, small_wan):
        with pytest.raises(FreelocError, match=r"expected backend to be a name or a freeloc\.attention\.Backend"):
            freeloc.patch(small_wan, make_profile(), backend=sdpa.attend)

    @pytest.mark.parametrize("name", ["", "auto"])
    def test_a_name_that_cannot_be_asked_for_is_refused(self, name):
        with pytest.raises(FreelocError, match=f"to have a name other than 'auto', found '{name}'"):
            Backend(name, sdpa.attend)

    def test_auto_tries_backends_by_priority_and_skips_those_that_refuse(self, small_wan, run, register_backends):
        register_backends(
            Backend("by-name", sdpa.attend),
            Backend("gpu", sdpa.attend, never, priority=9),
            Backend("quick", sdpa.attend, short_only, priority=5),
            Backend("slow", sdpa.attend, priority=-1),
        )
        assert [backend.name for backend in backends_named("auto")] == ["triton", "gpu", "quick", "sdpa", "slow"]
        with freeloc.patch(small_wan, make_profile()) as patch:
            run(small_wan, 9)
            assert used(patch) == {"quick"}
            run(small_wan, 10)
            assert used(patch) == {"quick", "sdpa"}

    def test_a_named_backend_that_refuses_says_why_and_in_which_layer(self, small_wan, run, register_backends):
        register_backends(Backend("gpu", sdpa.attend, never, priority=9))
        words = (
            "blocks.0.attn1: no attention backend can compute this call: gpu requires a CUDA device, found cpu. "
            'Use backend="auto", or "sdpa" (adapter \'wan\')'
        )
        with (
            freeloc.patch(small_wan, make_profile(), backend="gpu"),
            pytest.raises(LayoutError, match=f"^{re.escape(words)}$"),
        ):
            run(small_wan, 9)

    def test_no_backend_is_called_where_nothing_is_corrected(self, small_wan, run, register_backends):
        register_backends(Backend("gpu", sdpa.attend, never))
        with freeloc.patch(small_wan, make_profile(), backend="gpu") as patch:
            run(small_wan, 4)
        assert not used(patch)

    def test_two_packages_with_the_same_name(self, small_wan, register_backends, capsys):
        register_backends(Backend("mine", sdpa.attend, priority=3), distribution="one")
        register_backends(Backend("mine", sdpa.attend, priority=3), distribution="two")
        words = "backend 'mine' is registered by one and two: uninstall one of them, or rename it"
        with pytest.raises(RegistryError, match=words):
            freeloc.patch(small_wan, make_profile(), backend="mine")
        assert [backend.name for backend in backends_named("auto")] == ["triton", "sdpa"]
        assert main(["backends"]) == 1
        assert capsys.readouterr().err.strip() == words

    def test_the_command_lists_backends_in_the_order_of_auto(self, register_backends, capsys):
        register_backends(Backend("quick", sdpa.attend, priority=5, source="a paper"), Backend("by-name", sdpa.attend))
        assert main(["backends"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["triton", "quick", "sdpa", "by-name", "reference"]
        assert lines[1].endswith(" a paper")
        assert "auto, priority 5" in lines[1]
        assert "by name only" in lines[-1]


class TestOutput:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                lambda out: out[:, :, 1:],
                "to return torch.float32 of shape (2, 2, 135, 24) on cpu like the queries, "
                "found torch.float32 of shape (2, 2, 134, 24) on cpu",
            ),
            (lambda out: out.double(), "found torch.float64 of shape (2, 2, 135, 24) on cpu"),
            (lambda out: out.to("meta"), "found torch.float32 of shape (2, 2, 135, 24) on meta"),
            (lambda out: (out, None), "to return a tensor, found tuple"),
        ],
    )
    def test_an_output_that_does_not_match_the_queries_is_refused(self, small_wan, run, change, words):
        backend = Backend("odd", lambda *call: change(sdpa.attend(*call)))
        message = rf"^blocks\.0\.attn1: expected the backend 'odd' .*{re.escape(words)} \(adapter 'wan'\)$"
        with freeloc.patch(small_wan, make_profile(), backend=backend), pytest.raises(LayoutError, match=message):
            run(small_wan, 9)

    def test_a_predicate_that_does_not_return_a_text_is_refused(self, small_wan, run):
        backend = Backend("odd", sdpa.attend, can=lambda *call: True)
        message = "expected can of the backend 'odd' to return a text, what is in the way or an empty one, found True"
        with freeloc.patch(small_wan, make_profile(), backend=backend), pytest.raises(LayoutError, match=message):
            run(small_wan, 9)

    def test_the_tokens_are_checked_for_every_backend(self):
        q, k, v = torch.randn(3, 1, 2, 30, 24)
        careless = Backend("careless", lambda *call: call[0])
        plan = PreparedPlan(vrpr_plan(6, 4), ROPE, 24)
        with pytest.raises(LayoutError, match="expected self-attention over 36 tokens"):
            attend(q, k, v, plan, TokenLayout(6, 2, 3), backends=[careless])
        with pytest.raises(LayoutError, match="the plan is for 6 latent frames, the video has 5"):
            attend(q, k, v, plan, TokenLayout(5, 2, 3), backends=[careless])


class RecordedCall(NamedTuple):
    """A call of a patched model's layer, and what it computed."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    layout: TokenLayout
    mask: torch.Tensor | None
    scale: float | None
    out: torch.Tensor


def calls_of(subject, frames=9):
    """What each layer of a patched model receives and computes, by its number."""
    seen = []

    def note(query, key, value, plan, layout, mask, scale):
        out = sdpa.attend(query, key, value, plan, layout, mask, scale)
        seen.append(RecordedCall(query, key, value, layout, mask, scale, out))
        return out

    with subject.patch(backend=Backend("note", note)) as patch:
        subject.run(frames)
        model = patch._hooks[0].model
        step = model.read((), inputs_of(subject)).positions_per_frame
    numbers = [line.layer for line in patch.report().layers if line.calls]
    return model, step, dict(zip(numbers, seen, strict=False))


def inputs_of(subject, frames=9):
    return subject.example.inputs(frames, 2, 3, 2)


class TestOneLayer:
    @pytest.mark.parametrize("label", ["wan", "hunyuan-video", "cogvideox-1.5", "ltx", "ltx-2", "mochi", "latte"])
    def test_it_computes_what_the_patched_models_own_layer_does(self, label):
        subject = Subject(label)
        model, step, calls = calls_of(subject)
        assert calls
        for number, call in calls.items():
            whole = {
                "grid": (call.layout.frames, call.layout.height, call.layout.width),
                "rope": model.rope,
                "text_first": call.layout.text_first,
                "text_last": call.layout.text_last,
                "frequencies": None if model.rope is None else model.frequencies,
                "positions_per_frame": step,
                "spacing": step / model.trained_step if model.trained_step else 1.0,
                "scale": call.scale,
            }
            tensors = call.query, call.key, call.value
            found = attend_layer(subject.profile, number, *tensors, mask=call.mask, **whole)
            assert torch.equal(found, call.out)
            some = [tensor[:, 1:] for tensor in tensors]
            assert call.mask is None or call.mask.shape[1] == 1
            own = range(1, call.query.shape[1])
            part = attend_layer(subject.profile, number, *some, mask=call.mask, heads=own, **whole)
            assert (part - call.out[:, 1:]).abs().max() < 1e-6

    def test_plans_of_each_head_where_devices_share_the_heads(self):
        q, k, v = torch.randn(3, 1, 4, 9 * 6, 24)
        plans = [vrpr_plan(9, 4), sliding_window(9, 4), FramePlan.identity(9), vrpr_plan(9, 4)]
        frequencies = ROPE.frequencies(24) * torch.tensor([1.0, 0.5, 0.3, 0.2], dtype=torch.float64)[:, None]
        rest = {"grid": (9, 2, 3), "rope": ROPE, "frequencies": frequencies}
        whole = attend_layer(plans, 0, q, k, v, **rest)
        for own in (range(2), range(2, 4), [3, 1]):
            part = attend_layer(plans, 0, q[:, own], k[:, own], v[:, own], heads=own, **rest)
            torch.testing.assert_close(part, whole[:, own], atol=1e-6, rtol=1e-6)
        slow = attend_layer(plans, 0, q, k, v, backend="reference", **rest)
        torch.testing.assert_close(whole, slow, atol=1e-5, rtol=1e-5)

    def test_the_heads_of_a_profile_where_devices_share_them(self):
        profile = make_profile({"none": [0, 1, 2, 3]}, heads={"2": {"vrpr+tsa": [1]}})
        q, k, v = torch.randn(3, 1, 2, 9 * 6, 24)
        rest = {"grid": (9, 2, 3), "rope": ROPE}
        whole = attend_layer(profile, 2, q, k, v, **rest)
        first, second = (
            attend_layer(profile, 2, *(t[:, own : own + 1] for t in (q, k, v)), heads=[own], **rest) for own in (0, 1)
        )
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(first, plain[:, :1])
        assert (second - plain[:, 1:]).abs().max() > 1e-2

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"layer": 4}, ProfileError, "expected a layer from 0 to 3, found 4"),
            (
                {"grid": (9, 2)},
                LayoutError,
                r"expected grid to be latent frames, rows and columns of tokens, found \(9",
            ),
            ({"grid": (9, 2, 4)}, LayoutError, r"expected self-attention over 72 tokens \(9 latent frames of 2 x 4, 0"),
            (
                {"text_last": 3},
                LayoutError,
                r"expected self-attention over 57 tokens .*, 3 of text\), found 54 queries",
            ),
            ({"heads": [0]}, LayoutError, r"expected heads to number the 2 heads of the queries, found \[0\]"),
            ({"heads": [-1, 0]}, LayoutError, r"expected heads to number the 2 heads of the queries, found \[-1, 0\]"),
            (
                {"heads": [1, 2]},
                LayoutError,
                r"expected tensors with the model's 2 heads, or heads=\.\.\. .*, found 2 heads, up to number 2",
            ),
            ({"rope": None}, PatchError, "this model has no rotary embedding over time"),
            ({"backend": "sdpaa"}, RegistryError, "no backend is named 'sdpaa'; did you mean sdpa?"),
            ({"profile_or_plan": "wan2.1"}, FreelocError, "expected a Profile, a FramePlan, or a list of one per head"),
            ({"profile_or_plan": []}, FreelocError, "expected a Profile, a FramePlan, or a list of one per head"),
            (
                {"profile_or_plan": [FramePlan.identity(9)] * 3},
                LayoutError,
                "expected tensors with the model's 3 heads",
            ),
            ({"profile_or_plan": FramePlan.identity(5)}, LayoutError, "for 9 latent frames, the method made one for 5"),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused(self, changes, error, words):
        q, k, v = torch.randn(3, 1, 2, 9 * 6, 24)
        call = {"profile_or_plan": make_profile(), "layer": 0, "query": q, "key": k, "value": v, "grid": (9, 2, 3)}
        with pytest.raises(error, match=words):
            attend_layer(**call | {"rope": ROPE} | changes)

    def test_the_same_objects_are_prepared_once(self):
        plans = []

        def note(query, key, value, plan, layout, mask, scale):
            plans.append(plan)
            return sdpa.attend(query, key, value, plan, layout, mask, scale)

        q, k, v = torch.randn(3, 1, 2, 9 * 6, 24)
        profile, plan = make_profile(), vrpr_plan(9, 4)
        for choice in (profile, profile, profile.model_copy(deep=True), plan, plan, copy.deepcopy(plan)):
            attend_layer(choice, 0, q, k, v, grid=(9, 2, 3), rope=ROPE, backend=Backend("note", note))
        assert [plans.index(plan) for plan in plans] == [0, 0, 2, 3, 3, 5]

    def test_not_all_plans_are_kept(self):
        q = torch.randn(1, 1, 2, 4)
        for _ in range(layer.MOST_PLANS + 9):
            attend_layer(FramePlan.identity(2), 0, q, q, q, grid=(2, 1, 1), rope=TemporalRope(channels=2))
        assert len(layer._plans) == layer.MOST_PLANS

    def test_the_default_device_does_not_matter(self):
        q, k, v = torch.randn(3, 1, 2, 9 * 6, 24)
        rest = {"grid": (9, 2, 3), "rope": ROPE}
        expected = attend_layer(make_profile(), 2, q, k, v, **rest)
        with torch.device("meta"):
            found = attend_layer(make_profile(), 2, q, k, v, **rest)
        assert torch.equal(found, expected)

    def test_gradients_are_those_of_the_reference(self):
        leaves = [tensor.double().requires_grad_() for tensor in torch.randn(3, 1, 2, 9 * 6, 24)]
        found, expected = (
            torch.autograd.grad(
                attend_layer(make_profile(), 2, *leaves, grid=(9, 2, 3), rope=ROPE, backend=backend).square().sum(),
                leaves,
            )
            for backend in ("sdpa", reference.BACKEND)
        )
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
