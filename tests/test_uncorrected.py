"""Attention over the video that no adapter describes: in a second network, and in what a subclass adds."""

import copy
import inspect
import re
import typing
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from subjects import EXAMPLES, Subject
from torch import nn

import freeloc
from freeloc.adapter import AttentionSite
from freeloc.discovery import components, covers, find_adapter, modules_of, transformers_of
from freeloc.registry import registry
from freeloc.uncorrected import require_all_described

QUICK = ["hunyuan-video", "kandinsky5", "ltx", "wan-vace", "wan-original", "hunyuan-video-original", "open-sora-1.2"]
every_example = pytest.mark.parametrize(
    "label", [pytest.param(label, marks=() if label in QUICK else pytest.mark.slow) for label in EXAMPLES]
)


def blocks_of(model):
    """The name of the blocks of the first site, and a copy of them."""
    name = find_adapter(model).sites[0].path.partition(".*")[0]
    return name, copy.deepcopy(model.get_submodule(name))


class Second(nn.Module):
    """A network beside a transformer, with copies of its blocks."""

    def __init__(self, model):
        super().__init__()
        self.control_blocks = blocks_of(model)[1]


def subclass(model, **attributes):
    """The model as an object of a class that derives from its own."""
    cls = type(model)
    model.__class__ = type(f"My{cls.__name__}", (cls,), {"__module__": cls.__module__, **attributes})
    return model


def refusal(model, **options):
    with pytest.raises(freeloc.errors.AdapterError) as caught:
        freeloc.patch(model, method="tsa", **options)
    return str(caught.value)


class TestSecondNetwork:
    @every_example
    def test_it_is_refused_and_named(self, label):
        subject = Subject(label)
        pipe = SimpleNamespace(components={"transformer": subject.model, "controlnet": Second(subject.model)})
        message = refusal(pipe)
        assert f"over the video of {type(subject.model).__name__}, found also controlnet.control_blocks.*" in message
        assert message.endswith("leave_uncorrected=['controlnet']")

    @every_example
    def test_it_can_be_left_and_the_report_says_so(self, label):
        subject = Subject(label)
        pipe = SimpleNamespace(components={"transformer": subject.model, "controlnet": Second(subject.model)})
        with freeloc.patch(pipe, subject.profile, leave_uncorrected=["controlnet"]) as patch:
            subject.run(9)
        assert patch.report().left == ["controlnet (Second)"]
        assert "\nleft uncorrected, as asked: controlnet (Second)" in str(patch.report())
        assert patch.report().corrected_calls > 0
        assert not any(module._forward_hooks for module in pipe.components["controlnet"].modules())

    def test_in_a_list_of_components(self):
        subject = Subject("wan")
        pipe = SimpleNamespace(transformer=subject.model, controlnets=[nn.Linear(1, 1), Second(subject.model)])
        assert "found also controlnets.*.control_blocks.*.attn1 (4 of WanAttention)" in refusal(pipe)
        with freeloc.patch(pipe, subject.profile, leave_uncorrected=["controlnets"]) as patch:
            assert patch.report().left == ["controlnets (Linear, Second)"]

    def test_in_one_module_with_the_transformer(self):
        subject = Subject("ltx")
        both = nn.ModuleDict({"transformer": subject.model, "second": Second(subject.model)})
        message = refusal(both)
        assert "found also second.control_blocks.*.attn1 (2 of LTXAttention)" in message
        assert message.endswith("leave_uncorrected=['second.control_blocks.*.attn1']")

    def test_of_a_transformer_that_the_given_adapter_does_not_describe(self):
        wan, vace = Subject("wan").model, Subject("wan-vace").model
        pipe = SimpleNamespace(transformer=wan, transformer_2=vace)
        message = refusal(pipe, adapter=find_adapter(wan))
        assert "transformer_2.blocks.*.attn1 (4 of WanAttention), transformer_2.vace_blocks.*.attn1" in message

    def test_a_transformer_can_be_left_too(self):
        subject = Subject("wan")
        pipe = SimpleNamespace(transformer=subject.model, transformer_2=Subject("wan-vace").model)
        with freeloc.patch(pipe, subject.profile, leave_uncorrected=["transformer_2"]) as patch:
            assert len(patch.report().transformers) == 1
        assert patch.report().left == ["transformer_2 (WanVACETransformer3DModel)"]

    def test_the_same_transformer_under_two_names_is_none(self):
        subject = Subject("wan")
        pipe = SimpleNamespace(transformer=subject.model, transformer_2=subject.model)
        with freeloc.patch(pipe, subject.profile) as patch:
            assert len(patch.report().transformers) == 1

    @pytest.mark.parametrize("wrap", [torch.compile, lambda model: SimpleNamespace(transformer=model)])
    def test_wrappers_hide_nothing_and_add_nothing(self, wrap):
        subject = Subject("hunyuan-video")
        for block in subject.model.transformer_blocks:
            block.attn = torch.compile(block.attn)
        with freeloc.patch(wrap(subject.model), subject.profile):
            pass
        subject.model.more_blocks = nn.ModuleList([torch.compile(blocks_of(subject.model)[1][0])])
        assert "more_blocks.*.attn (1 of " in refusal(wrap(subject.model))


class TestSubclass:
    @every_example
    def test_more_attention_is_refused_and_named(self, label):
        subject = Subject(label)
        subclass(subject.model).more_blocks = blocks_of(subject.model)[1]
        message = refusal(subject.model)
        assert f"over the video of My{type(subject.model).__base__.__name__}, found also more_blocks.*" in message
        assert "leave_uncorrected=['more_blocks.*" in message

    @every_example
    def test_more_attention_can_be_left_and_the_report_says_so(self, label):
        subject = Subject(label)
        subclass(subject.model).more_blocks = blocks_of(subject.model)[1]
        with freeloc.patch(subject.model, subject.profile, leave_uncorrected=["more_blocks"]) as patch:
            subject.run(9)
        assert patch.report().left == [f"more_blocks ({type(subject.model.more_blocks).__name__})"]
        assert patch.report().corrected_calls > 0

    @every_example
    def test_without_more_attention_it_is_corrected(self, label):
        subject = Subject(label)
        with subject.patch() as patch:
            expected = subject.run(9)
        model = subclass(subject.model, note=lambda self: "nothing about attention")
        with freeloc.patch(model, subject.profile) as patch:
            assert torch.equal(subject.run(9), expected)
        assert patch.report().left == []

    def test_more_attention_of_the_same_class_under_any_name(self):
        subject = Subject("wan")
        for block in subclass(subject.model).blocks:
            block.of_time = copy.deepcopy(block.attn1)
        assert "found also blocks.*.of_time (4 of WanAttention)" in refusal(subject.model)

    def test_an_adapter_of_the_subclass_corrects_it(self):
        """As in inference engines, whose VACE derives from their Wan."""
        known = find_adapter(Subject("wan").model)
        subject = Subject("wan-vace")
        wan = replace(known, classes=(f"{type(subject.model).__module__}.{type(subject.model).__name__}",))
        assert "found also vace_blocks.*.attn1 (2 of WanAttention), vace_blocks.*.attn2" in refusal(
            subject.model, adapter=wan
        )
        vace = AttentionSite("vace_blocks.*.attn1", layers="config.vace_layers")
        others = (*wan.other_attention, "vace_blocks.*.attn2")
        whole = replace(wan, sites=(*wan.sites, vace), other_attention=others)
        with freeloc.patch(subject.model, subject.profile, adapter=whole) as patch:
            subject.run(9)
        assert patch.report().corrected_calls == 6

    @pytest.mark.parametrize("label", ["wan", "hunyuan-video", "kandinsky5"])
    def test_an_adapter_for_exactly_one_class_does_not_describe_its_subclasses(self, label):
        subject = Subject(label)
        exact = replace(find_adapter(subject.model), exact=True)
        with freeloc.patch(subject.model, subject.profile, adapter=exact):
            pass
        message = refusal(subclass(subject.model), adapter=exact)
        assert f"is for exactly {exact.classes[0]}. Looked at: {type(subject.model).__module__}.My" in message


class TestLeaveUncorrected:
    @pytest.mark.parametrize(
        ("leave", "message"),
        [
            ("vae", "expected leave_uncorrected to be a list of names, found 'vae'"),
            ([1], "expected leave_uncorrected to be a list of names, found [1]"),
            (["vea"], "found 'vea', which is none. There are transformer, vae; modules"),
            (["transformer.blocks.0"], "found 'transformer.blocks.0', in which layers are described. Use a profile"),
            (["transformer.blocks.*.attn1"], "found 'transformer.blocks.*.attn1', in which layers are described"),
            (["transformer"], "no adapter describes this model"),
        ],
    )
    def test_what_is_no_such_name_is_an_error(self, small_wan, leave, message):
        pipe = SimpleNamespace(transformer=small_wan, vae=nn.Linear(1, 1))
        assert message in refusal(pipe, leave_uncorrected=leave)

    def test_a_name_covers_what_is_below_it(self):
        assert covers(["blocks.*.attn2"], "blocks.11.attn2.to_q")
        assert not covers(["blocks.*.attn2"], "blocks.11")
        assert not covers(["block"], "blocks.11")


def described(annotation):
    """The classes of a type hint that are models."""
    for kind in typing.get_args(annotation) or [annotation]:
        if typing.get_args(kind):
            yield from described(kind)
        elif inspect.isclass(kind) and issubclass(kind, nn.Module):
            yield kind


def pipelines():
    """Every pipeline of diffusers with a transformer that an adapter describes, and its models by component."""
    known = {path for _, _, thing in registry().adapters.things() if hasattr(thing, "sites") for path in thing.classes}
    for name in dir(diffusers):
        if name.endswith("Pipeline") and inspect.isclass(cls := getattr(diffusers, name)):
            hints = typing.get_type_hints(cls.__init__) if cls.__init__ is not object.__init__ else {}
            models = {part: list(described(hint)) for part, hint in hints.items()}
            every = [model for several in models.values() for model in several]
            if any(f"{model.__module__}.{model.__qualname__}" in known for model in every):
                yield name, models


SMALL = {"EasyAnimateTransformer3DModel": "easyanimate", "LatteTransformer3DModel": "latte"}
NOT_MADE = {"T5Gemma2Encoder"}
"""Classes whose default configuration makes no model."""


class TestNoPipelineIsRefusedForNothing:
    """The real classes of the components of every video pipeline of diffusers, without weights."""

    @staticmethod
    def made(kind, known):
        if kind not in known:
            if kind.__name__ in SMALL:
                with torch.device("cpu"):
                    known[kind] = EXAMPLES[SMALL[kind.__name__]].model()
            elif kind.__name__ == "CosmosTransformer3DModel":
                known[kind] = kind(controlnet_block_every_n=7)
            elif kind.__name__ not in NOT_MADE:
                config = getattr(kind, "config_class", None)
                known[kind] = kind(config()) if config else kind()
        return known.get(kind)

    @pytest.mark.slow
    def test_pipelines_of_diffusers(self):
        known, names = {}, []
        for name, models in pipelines():
            with torch.device("meta"):
                parts = {
                    f"{part}{index}": self.made(kind, known)
                    for part, kinds in models.items()
                    for index, kind in enumerate(kinds)
                }
            pipe = SimpleNamespace(components=parts)
            assert require_all_described(pipe, transformers_of(pipe), leave=()).names == [], name
            names.append(name)
        assert len(names) > 40

    def test_the_text_connectors_of_ltx_2_are_none_of_its_layers(self):
        subject = Subject("ltx-2")
        pipe = SimpleNamespace(transformer=subject.model, connectors=diffusers.pipelines.ltx2.LTX2TextConnectors)
        with torch.device("meta"):
            pipe.connectors = diffusers.pipelines.ltx2.LTX2TextConnectors()
        attention = {type(each.module) for each in modules_of(components(pipe)) if each.component == "connectors"}
        assert type(subject.model.transformer_blocks[0].attn1) in attention
        with freeloc.patch(pipe, subject.profile):
            pass


def test_a_pattern_in_the_message_is_one_that_can_be_passed():
    subject = Subject("wan")
    subclass(subject.model).more_blocks = blocks_of(subject.model)[1]
    found = re.search(r"leave_uncorrected=\[(.*)\]$", refusal(subject.model))
    with freeloc.patch(subject.model, subject.profile, leave_uncorrected=eval(found[0].partition("=")[2])) as patch:
        assert patch.report().left == ["more_blocks.*.attn1 (WanAttention)", "more_blocks.*.attn2 (WanAttention)"]
