"""The conformance suite: on every installed adapter, and on adapters that are wrong in one word."""

import contextlib
from dataclasses import replace
from unittest import mock

import cosmos_control
import fastvideo_double
import hunyuan_double
import opensora_double
import pytest
import torch.nn.functional as F
import wan_double
from freeloc_toy import model as toy_dit
from freeloc_toy.adapter import KERNEL
from freeloc_toy.adapter import TOY as RIGHT
from freeloc_toy.examples import inputs
from freeloc_toy.model import ToyDiT
from torch import nn

import freeloc
from freeloc.adapter import MATMUL, References
from freeloc.testing import CHECKS, Example, behaviour, conformance, examples, random_model, run_checks

TOY = "freeloc_toy.model"
SITE = RIGHT.sites[0]


def example(**changes):
    return Example("toy", lambda: random_model(lambda: ToyDiT(**changes)), inputs, video="video")


def problems(adapter, model=None):
    """Messages by check."""
    return {result.check: result.problem for result in run_checks(model or example(), adapter) if result.problem}


QUICK = {"wan-vace", "hunyuan-video", "cogvideox-1.5", "ltx-2", "mochi"}
ORIGINALS = (
    *fastvideo_double.EXAMPLES,
    *wan_double.EXAMPLES,
    *hunyuan_double.EXAMPLES,
    *opensora_double.EXAMPLES,
    *cosmos_control.EXAMPLES,
)


@conformance(*[each for each in examples() if each.label in QUICK])
def test_installed_adapters(check):
    check()


@pytest.mark.slow
@conformance(*[each for each in examples() if each.label not in QUICK])
def test_more_installed_adapters(check):
    check()


@conformance(*ORIGINALS[::2])
def test_adapters_of_original_repositories(check):
    check()


@pytest.mark.slow
@conformance(*ORIGINALS[1::2])
def test_more_adapters_of_original_repositories(check):
    check()


def test_a_right_description_has_no_problem():
    assert all(result.passed for result in run_checks(example(), RIGHT))


def wrong(**changes):
    return replace(RIGHT, **changes)


def wrong_site(**changes):
    return wrong(sites=(replace(SITE, **changes),))


def wrong_kernel(**changes):
    return wrong_site(kernel=replace(KERNEL, **changes))


def wrong_rope(**changes):
    return wrong(rope=replace(RIGHT.rope, **changes))


BROKEN = {
    "check_it_matches_its_class_only": [
        (
            wrong(classes=(f"{TOY}.ToyDiT", f"{TOY}.ToyBlock")),
            "classes: 'blocks.0', a ToyBlock, is a part",
        ),
        (
            wrong(classes=(f"{TOY}.Another",)),
            f"classes: the model is a {TOY}.ToyDiT, the adapter names {TOY}.Another",
        ),
    ],
    "check_importing_it_is_light": [
        (
            wrong(classes=(f"{TOY}.ToyDiT", "pydantic.BaseModel")),
            "importing the adapters imports ['pydantic']",
        ),
        (
            wrong(classes=(f"{TOY}.ToyDiT", "*.pydantic.BaseModel")),
            "importing the adapters imports ['*.pydantic']",
        ),
    ],
    "check_every_site_is_named": [
        (wrong_site(path="blocks.*.self_attention"), "sites: ToyDiT has no 'blocks.0.self_attention'"),
        (wrong(sites=(SITE, SITE)), "sites: a module is named twice"),
    ],
    "check_other_attention_is_named": [
        (
            wrong(other_attention=None),
            "other_attention: expected an adapter to describe all modules like those that attend over the video of "
            "ToyDiT, found also text_attention (1 of ToyAttention)",
        ),
        (wrong(other_attention=("blocks.*.text_attention",)), "found also text_attention (1 of ToyAttention)"),
    ],
    "check_every_site_calls_its_kernel": [
        (wrong_kernel(function="flash_attention"), f"{TOY} has no function 'flash_attention'"),
        (wrong_site(kernel=MATMUL), "made no call of torch.matmul"),
        (
            wrong(grid=replace(RIGHT.grid, references=References(frames=9))),
            "expected more latent frames than the 9 of reference images, found 8",
        ),
        (
            wrong(grid=replace(RIGHT.grid, largest_frames=("heads", "heads"))),
            "expected at most 2 latent frames, since ToyDiT has positions for no more, found 8",
        ),
        (wrong_kernel(query="bias"), "found 1 of queries, 2 of keys and 2 of values"),
        (wrong_kernel(query="sharpness"), "expected sharpness (b l h d) among the arguments of its attention, found f"),
    ],
    "check_every_tensor_of_the_call_is_described": [
        (wrong_kernel(mask=None), "kernel: blocks.0.attention passes a tensor 'bias'"),
    ],
    "check_the_sizes_are_the_models_own": [
        (wrong(heads="head_dim"), "heads: blocks.0.attention has 2, the adapter reads 12"),
        (
            wrong(grid=replace(RIGHT.grid, largest_frames=("rows", "rows"))),
            "its adapter expects ToyDiT.rows",
        ),
    ],
    "check_the_layout_adds_up": [
        (
            wrong_site(text="none", text_tokens="", joint=False),
            "text: 'none', but blocks.0.attention has 4 more tokens than the grid",
        ),
        (wrong(grid=replace(RIGHT.grid, axes="b f c w h")), "look at argument, axes and patch"),
        (wrong(grid=replace(RIGHT.grid, patch=(1, 1, 2))), "the adapter reads (8, 4, 3)"),
    ],
    "check_each_token_is_where_it_should_be": [
        (wrong_site(text="last"), "should change tokens 6 to 11 of blocks.0.attention, it changed 10 to 15 of 52"),
    ],
    "check_our_rotation_is_the_models_own": [
        (wrong_rope(pairing="(pair two)"), "pairing: the described (pair two) does not fit, (two pair) does"),
        (wrong_rope(first=0), "channels: the rotated ones of a head are 4-7, the adapter describes 0-3"),
        (wrong_rope(channels=2), "channels: the rotated ones of a head are 4-7, the adapter describes 4-5"),
        (wrong_rope(theta=10_000.0), "with one base for all pairs, theta=100 and step=1"),
        (wrong(rope=None), "none is described, but between equal frames there is a rotation"),
        (wrong_rope(step=lambda model, given: 0.5), "with one base for all pairs, theta=100 and step=1"),
    ],
    "check_text_is_counted": [
        (wrong_site(text_tokens="bias"), "blocks.0.attention has 4 text tokens, the adapter reads 1 from 'bias'"),
        (wrong_site(text_tokens="transformer.prompt"), "has 4 text tokens, the adapter reads 0 from"),
    ],
    "check_every_call_is_as_described": [
        (wrong_rope(tables="bias"), "expected rotary tables of 48 tokens, found shapes (2, 1, 1, 52)"),
        (wrong_rope(tables="angles"), "its attention was called without rotary tables"),
        (wrong_site(joint=False), "expected 48 tokens, 8 latent frames of 2 x 3 = 48, found 52"),
        (wrong_site(hidden_states="turns"), "expected (batch, tokens, channels) as its argument 'turns', found Tensor"),
    ],
    "check_the_frame_rate_is_near_the_trained_one": [
        (wrong_rope(trained_step=0.04), "near the example's 1, found 0.04: are both in the same unit?"),
    ],
    "check_the_engine_is_the_models_attention": [
        (wrong_kernel(scale=None), "look at mask, scale, valid_keys, segments and output"),
    ],
}


@pytest.mark.parametrize(
    ("check", "adapter", "message"),
    [
        pytest.param(check, *case, id=f"{check}-{index}")
        for check, cases in BROKEN.items()
        for index, case in enumerate(cases)
    ],
)
def test_one_wrong_word_is_caught_by_one_check_that_names_it(check, adapter, message):
    found = problems(adapter, example(sharpness=0.7))
    assert list(found) == [check]
    assert message in found[check]


class Padding(ToyDiT):
    """Pads the video to a multiple of the patch, as ComfyUI does."""

    def forward(self, video, text, text_lengths):
        rows, columns = (-size % 2 for size in video.shape[3:])
        return super().forward(F.pad(video, (0, columns, 0, rows)), text, text_lengths)


def test_a_grid_that_does_not_see_padding_is_caught():
    padding = Example("toy", lambda: random_model(Padding), inputs, video="video")
    found = problems(RIGHT, padding)
    assert list(found) == ["check_sizes_that_are_no_multiple_of_the_patch"]
    message = found["check_sizes_that_are_no_multiple_of_the_patch"]
    assert "expected 36 tokens" in message or "does it pad the video?" in message


class Pad(nn.Module):
    def forward(self, video):
        rows, columns = (-size % 2 for size in video.shape[3:])
        return F.pad(video, (0, columns, 0, rows))


class PaddingInAModule(ToyDiT):
    """Pads the video in a submodule, if rows and columns are odd; it fails if one is."""

    def __init__(self):
        super().__init__()
        self.pad = Pad()

    def forward(self, video, text, text_lengths):
        if (video.shape[3] + video.shape[4]) % 2:
            raise ValueError
        return super().forward(self.pad(video), text, text_lengths)


def test_a_grid_read_before_a_submodule_pads_is_caught_and_one_read_after_it_is_right():
    padding = Example("toy", lambda: random_model(PaddingInAModule), inputs, video="video")
    grid = replace(RIGHT.grid, of="pad")
    assert problems(wrong(grid=replace(grid, argument="output")), padding) == {}
    found = problems(wrong(grid=grid), padding)
    assert list(found) == ["check_sizes_that_are_no_multiple_of_the_patch"]
    assert "an odd size along h and w the model runs, but" in str(found)
    assert "8 latent frames of 2 x 3 = 48 and 4 of text, found 100" in str(found)


class FinerDiT(ToyDiT):
    """A class that derives from the described one."""


@pytest.mark.parametrize("exact", [False, True])
def test_an_adapter_for_exactly_one_class_is_caught_on_a_subclass(exact):
    finer = replace(example(), model=lambda: random_model(FinerDiT))
    found = problems(wrong(exact=exact), finer)
    assert list(found) == (["check_it_matches_its_class_only"] if exact else [])
    assert not exact or f"FinerDiT, the adapter names exactly {TOY}.ToyDiT" in found["check_it_matches_its_class_only"]


def test_attention_that_a_subclass_adds_is_caught():
    class WiderDiT(ToyDiT):
        def __init__(self):
            super().__init__()
            self.more_attention = toy_dit.ToyAttention(None)

    found = problems(RIGHT, replace(example(), model=lambda: random_model(WiderDiT)))
    assert list(found) == ["check_other_attention_is_named"]
    assert "of WiderDiT, found also more_attention (1 of ToyAttention)" in found["check_other_attention_is_named"]


def add_one(model, given):
    """A `step` that writes where it should only read."""
    given["video"].add_(1)
    return 1.0


class Counting(toy_dit.ToyAttention):
    """Counts how often its mode was set, so that setting the old mode does not undo it."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "mode":
            self.__dict__["changes"] = self.__dict__.get("changes", 0) + 1


Counting.__module__ = "freeloc_toy.model"  # where its kernel is


def counting():
    model = example().model()
    for block in model.blocks:
        block.attention.__class__ = Counting
    return model


def test_a_wrong_word_of_a_later_site_is_caught_too():
    two_streams = examples("hunyuan-video")[0]
    adapter = freeloc.discovery.find_adapter(two_streams.model())
    later = replace(adapter.sites[1], text="first")
    found = problems(replace(adapter, sites=(adapter.sites[0], later)), two_streams)
    assert list(found) == ["check_each_token_is_where_it_should_be"]
    assert "of single_transformer_blocks.0.attn, it changed" in found["check_each_token_is_where_it_should_be"]


def test_absolute_positions_are_distinguished_from_a_wrong_rope():
    found = problems(RIGHT, example(absolute=True))
    assert list(found) == ["check_scores_depend_on_distance_only"]
    assert "the model also has absolute positions" in found["check_scores_depend_on_distance_only"]


def test_a_description_that_changes_the_input_is_caught():
    assert list(problems(wrong_rope(step=add_one))) == ["check_the_identity_changes_nothing"]


def test_an_attribute_that_cannot_be_set_back_is_caught():
    adapter = wrong_site(while_running={"mode": "freeloc_toy.model:THETA"})
    found = problems(adapter, replace(example(), model=counting))
    assert found == {"check_unpatching_restores_all": "hooks or attributes are left behind"}


def test_an_engine_that_is_not_its_reference_is_caught(monkeypatch):
    def careless(query, key, value, tables, layout, *rest):
        out = freeloc.attention.attend(query, key, value, tables, layout, *rest)
        out[:, :, layout.video] *= 1.001
        return out

    monkeypatch.setattr(behaviour, "attend", careless)
    assert list(problems(RIGHT)) == ["check_fast_equals_reference"]


@pytest.mark.parametrize("hides", ["video from text", "text from video"])
def test_an_engine_that_hides_text_is_caught(monkeypatch, hides):
    def without_text(function):
        def call(query, key, value, tables, layout, *rest):
            value = value.clone()
            if hides == "text from video":
                value[:, :, : layout.text_first] = 0
            out = function(query, key, value, tables, layout, *rest)
            if hides == "video from text":
                out[:, :, : layout.text_first] = 0
            return out

        return call

    monkeypatch.setattr(behaviour, "attend", without_text(freeloc.attention.attend))
    monkeypatch.setattr(behaviour, "attend_reference", _reference_without_text(hides))
    assert list(problems(RIGHT)) == ["check_text_is_neither_hidden_nor_rotated"]


def _reference_without_text(hides):
    def call(query, key, value, plan, rope, layout, *rest):
        value = value.clone()
        if hides == "text from video":
            value[:, :, : layout.text_first] = 0
        out = freeloc.attention.attend_reference(query, key, value, plan, rope, layout, *rest)
        if hides == "video from text":
            out[:, :, : layout.text_first] = 0
        return out

    return call


def test_a_patch_that_reaches_other_models_is_caught(monkeypatch):
    @contextlib.contextmanager
    def everywhere(model, *args, **kwargs):
        forward = ToyDiT.forward

        def scaled(self, **inputs):
            return forward(self, **inputs) * (1 if self is model else 2)

        with freeloc.patch(model, *args, **kwargs), mock.patch.object(ToyDiT, "forward", scaled):
            yield

    monkeypatch.setattr(behaviour, "patch", everywhere)
    assert list(problems(RIGHT)) == ["check_two_models_do_not_see_each_other"]


def test_every_check_has_an_adapter_or_engine_that_it_alone_catches():
    alone = {*BROKEN, "check_scores_depend_on_distance_only", "check_the_identity_changes_nothing"}
    alone |= {
        "check_unpatching_restores_all",
        "check_fast_equals_reference",
        "check_text_is_neither_hidden_nor_rotated",
    }
    alone |= {"check_two_models_do_not_see_each_other", "check_sizes_that_are_no_multiple_of_the_patch"}
    assert alone == {check.__name__ for check in CHECKS}
