"""Which arguments of an attention module count its text, hold its tokens, or hold its rotary tables."""

from dataclasses import replace
from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from freeloc_toy.adapter import TOY as TOY_ADAPTER
from freeloc_toy.examples import EXAMPLE as TOY

import freeloc
from freeloc.inspection.adapter_file import adapter_file
from freeloc.inspection.argument_search import FoundArguments, FoundTables, find_arguments, find_tables
from freeloc.interception.watch import AttentionCall, observe
from freeloc.testing import examples, noise

EXAMPLES = {example.label: example for example in [*examples(), TOY]}
INSTALLED = {adapter.name: adapter for adapter in [*freeloc.discovery.adapters(), TOY_ADAPTER]}
WITH_TABLES = [
    *("allegro", "cogvideox", "cosmos-2", "hunyuan-video", "kandinsky5", "ltx", "ltx-2-split", "mochi", "toy", "wan"),
]


def inspected(name):
    """What is found in an example, and its first call over the whole grid."""
    example = EXAMPLES[name]
    seen = freeloc.inspect(example.model(), example.inputs(8, 2, 3, 2))
    calls = observe(example.model(), example.inputs(8, 2, 3, 2))
    return seen, next(call for call in calls if call.path == seen.candidates[0].first)


@pytest.mark.parametrize("name", WITH_TABLES)
def test_the_written_file_names_the_arguments_that_the_adapter_of_the_family_names(name):
    names, known = {}, INSTALLED[EXAMPLES[name].adapter]
    exec(adapter_file(inspected(name)[0]), names)
    found = names["ADAPTER"]
    arguments = attrgetter("text", "text_tokens", "text_mask", "hidden_states", "joint")
    assert [arguments(site) for site in found.sites] == [arguments(site) for site in known.sites]
    assert found.rope.tables == known.rope.tables != ""
    assert found.rope.table_rows == ("position" if name == "allegro" else "token")


def unit(angles):
    return torch.polar(torch.ones_like(angles), angles)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda turns: {"x": 1.1 * turns, "turns": turns}, ("turns", "token")),
        (lambda turns: {"one": turns, "other": turns}, ("one", "token")),
        (lambda turns: {"shifted": turns + 1}, ("shifted", "token")),
        (lambda turns: {"turns": (turns.cos(), turns.sin())}, ("turns", "token")),
        (lambda turns: {"turns": [{"both": unit(turns)}]}, ("turns", "token")),
        (lambda turns: {"turns": turns[4:]}, ("turns", "token")),  # of the video only
        (lambda turns: {"turns": turns[4::6]}, ("turns", "position")),
        (lambda turns: {"turns": turns[4::6, 2:4]}, None),  # neither pairs of a head nor channels of its block
        (lambda turns: {"faster": 1.1 * turns}, None),
        (lambda turns: {"turns": turns[:-1]}, None),
        (lambda turns: {"turns": (turns.cos(), turns.sin()[:, :4])}, None),
        (lambda turns: {"turns": torch.zeros_like(turns)}, None),
        (lambda turns: {"turns": "tables", "x": 3, "y": None}, None),
    ],
)
def test_rotary_tables_are_those_that_agree_with_the_rotation(given, found):
    seen, call = inspected("toy")
    call = replace(call, given=given(call.given["turns"]))
    assert find_tables(call, seen.rope, 8, 48, is_first=True) == (found and FoundTables(*found))


def test_rotary_tables_of_heads_that_differ_agree_only_with_all_heads():
    seen, call = inspected("mochi")
    cos, sin = call.given["image_rotary_emb"]
    assert find_tables(call, seen.rope, 8, 48, is_first=False) == FoundTables("image_rotary_emb", "token")
    of_one = replace(call, given={"image_rotary_emb": (cos[:, :1], sin[:, :1])})
    assert find_tables(of_one, seen.rope, 8, 48, is_first=False) is None


X, JOINT, TEXT = noise(2, 48, 8), noise(2, 53, 8), noise(2, 5, 8)


def calls_of(*tokens, **given):
    """Kernel calls of a module with so many tokens; several calls have one sample each."""
    queries = [torch.zeros(2 if len(tokens) == 1 else 1, 2, count, 4) for count in tokens]
    return [AttentionCall("attn", "sdpa", query, query, query, given=given) for query in queries]


def valid(*tokens):
    return torch.arange(5) < torch.tensor(tokens)[:, None]


@pytest.mark.parametrize(
    ("calls", "inputs", "found"),
    [
        (calls_of(53, x=X, txt=TEXT), {}, {"text_tokens": "txt"}),
        (calls_of(53, x=JOINT, txt_len=5), {}, {"text_tokens": "txt_len", "joint": True}),
        (calls_of(53, x=JOINT), {"y": TEXT}, {"text_tokens": "transformer.y", "joint": True}),
        (calls_of(53, x=JOINT), {"ids": valid(5, 2)}, {"text_tokens": "transformer.ids", "joint": True}),
        (calls_of(53, time=TEXT, x=X, txt=TEXT), {}, {"text_tokens": "txt", "hidden_states": "x"}),
        (calls_of(53, x=X, flag=True, size=5), {"txt": TEXT}, {"text_tokens": "size"}),
        (calls_of(48, time=noise(2, 8), x=X), {"txt": TEXT}, {"hidden_states": "x"}),
        (calls_of(48, q=noise(2, 2, 48, 4)), {}, {}),
        (calls_of(53, 50, x=X, txt=TEXT, seen=valid(5, 2)), {}, {"text_tokens": "txt", "text_mask": "seen"}),
        (calls_of(49, 50, x=X, txt=TEXT, seen=valid(1, 2)), {}, {"text_tokens": "txt", "text_mask": "seen"}),
    ],
)
def test_arguments_are_found_by_the_number_of_tokens(calls, inputs, found):
    assert find_arguments(calls, 48, inputs) == FoundArguments(**found)


@pytest.mark.parametrize(
    ("calls", "unknown"),
    [
        (calls_of(53, x=JOINT), "text_tokens: no argument of attn, nor of the model, has 5 text tokens"),
        (calls_of(53, x=X, a=TEXT, b=TEXT), "text_tokens: b of attn may count the 5 text tokens as well"),
        (calls_of(53, 50, x=X, txt=TEXT), "text_mask: no argument of attn masks [5, 2] text tokens of the samples"),
        (calls_of(48, x=noise(48, 2, 8)), "hidden_states: no argument of attn has 48 tokens as its second axis"),
    ],
)
def test_what_is_not_found_is_said(calls, unknown):
    assert find_arguments(calls, 48, {}).unknown == (unknown,)


def test_a_file_without_a_counter_of_text_says_what_to_write():
    class Hidden(type(TOY.model())):
        def forward(self, video, prompt, text_lengths):
            return super().forward(video, prompt.text, text_lengths)

    model, inputs = TOY.model(), TOY.inputs(8, 2, 3, 2)
    model.__class__ = Hidden
    text = adapter_file(freeloc.inspect(model, inputs | {"prompt": SimpleNamespace(text=inputs.pop("text"))}))
    assert 'text_tokens="TODO: the argument that counts the text tokens"' in text
    assert (
        "a person must add: text_tokens: no argument of blocks.0.attention, nor of the model, has 4 text tokens" in text
    )
