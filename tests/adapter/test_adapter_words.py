"""A mistake in an adapter is an error that names the field and says what to write."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from freeloc_toy.adapter import KERNEL, TOY
from freeloc_toy.model import ToyDiT

import freeloc
from freeloc.adapter import Adapter, AttentionSite, Bypasses, Kernel, References, TemporalRope, TokenGrid

SITE = TOY.sites[0]
QUALIFIED = (
    r"Adapter\.classes: expected qualified names, 'package\.module\.Class', or their ends, '\*\.module\.Class', "
)

SLIPS = {
    "a path without a star": (
        lambda: AttentionSite("blocks.attention"),
        r"AttentionSite\.path: expected one \* for the number of the block, .* found 'blocks\.attention'",
    ),
    "a path with two": (lambda: AttentionSite("blocks.*.parts.*"), r"expected one \*"),
    "a star for part of a name": (lambda: AttentionSite("blocks.layer*.attention"), r"expected one \*"),
    "another end for text": (
        lambda: AttentionSite("blocks.*", text="end"),
        "AttentionSite.text: expected one of 'none', 'first', 'last', found 'end'",
    ),
    "other tokens": (lambda: AttentionSite("blocks.*", tokens="fhw"), "expected one of 'f h w', 'f', found 'fhw'"),
    "a kernel by its name alone": (
        lambda: AttentionSite("blocks.*", kernel="kernel"),
        r"AttentionSite\.kernel: expected Kernel \| tuple\[Kernel, \.\.\.\], found 'kernel'",
    ),
    "a class of hooks by its name alone": (
        lambda: Bypasses("hooks", caches=("CacheHook",)),
        r"Bypasses\.caches: expected a tuple of qualified names, \('package\.module\.Class',\), found \('CacheHook',\)",
    ),
    "a hook that is no tuple": (
        lambda: Bypasses("hooks", skips=("package.SkipHook")),
        r"Bypasses\.skips: expected a tuple of .* found 'package.SkipHook'",
    ),
    "a value that is no place": (
        lambda: AttentionSite("blocks.*", while_running={"mode": "slow"}),
        r"while_running\['mode'\]: expected the import path of a value, 'package\.module:NAME', .* found 'slow'",
    ),
    "a value itself": (
        lambda: AttentionSite("blocks.*", while_running={"mode": False}),
        r"while_running: expected Mapping\[str, str\], found {'mode': False}",
    ),
    "one site without a comma": (
        lambda: replace(TOY, sites=SITE),
        r"Adapter\.sites: expected tuple\[AttentionSite, \.\.\.\], found .*: a tuple with one item needs a comma",
    ),
    "no site": (lambda: replace(TOY, sites=()), r"Adapter\.sites: expected tuple\[AttentionSite"),
    "one class without a comma": (
        lambda: replace(TOY, classes="freeloc_toy.model.ToyDiT"),
        r"Adapter\.classes: expected tuple\[str, \.\.\.\], found 'freeloc_toy\.model\.ToyDiT': a tuple with one item",
    ),
    "a class without its module": (lambda: replace(TOY, classes=("ToyDiT",)), f"{QUALIFIED}found 'ToyDiT'"),
    "the end of a name without its module": (lambda: replace(TOY, classes=("*.ToyDiT",)), QUALIFIED),
    "a star in the middle": (lambda: replace(TOY, classes=("a.*.model.ToyDiT",)), QUALIFIED),
    "a star without a dot": (lambda: replace(TOY, classes=("*model.ToyDiT",)), QUALIFIED),
    "a refused class without a comma": (
        lambda: freeloc.adapter.Refusal("no", "a.b.C", "why"),
        r"Refusal\.classes: expected tuple",
    ),
    "a number of heads": (lambda: replace(TOY, heads=24), r"Adapter\.heads: expected str, found 24"),
    "a rope that is none": (lambda: replace(TOY, rope=False), r"Adapter\.rope: expected TemporalRope \| None"),
    "frames by another letter": (
        lambda: TokenGrid(axes="b t c h w"),
        r"TokenGrid\.axes: expected each axis .* frames f, rows h and columns w, as in 'b c f h w', found 'b t c h w'",
    ),
    "axes in one word": (lambda: TokenGrid(axes="bcfhw"), "TokenGrid.axes"),
    "one size of a patch": (lambda: TokenGrid(patch=2), r"TokenGrid\.patch: expected str \| tuple\[int .*, found 2"),
    "two sizes of a patch": (lambda: TokenGrid(patch=(2, 2)), r"TokenGrid\.patch: .*, found \(2, 2\)"),
    "two arguments": (lambda: TokenGrid(("height", "width")), r"TokenGrid\.argument: expected str \| tuple\[str"),
    "a grid of what the transformer returns": (
        lambda: TokenGrid("output"),
        r"TokenGrid\.of: expected the path of the submodule that returns the output, found 'transformer'",
    ),
    "references in the middle": (lambda: References("middle"), "References.place: expected one of 'first', 'last'"),
    "text without its number": (
        lambda: AttentionSite("blocks.*.attention", text="first"),
        r"AttentionSite\.text_tokens: expected the argument that counts the text tokens, .* found ''",
    ),
    "a grid of attention modules without a table": (
        lambda: TokenGrid("sizes", of="attention"),
        r"TokenGrid\.axes: expected 'sample \(f h w\)', the table that .* found 'b c f h w'",
    ),
    "an argument refused without a reason": (lambda: TokenGrid(refused={"mask"}), r"TokenGrid\.refused: .*\{'mask'\}"),
    "a function by its path": (
        lambda: replace(KERNEL, function="package.module.attention"),
        r"Kernel\.function: expected the name of a function in .* '\.name', found 'package\.module\.attention'",
    ),
    "another name without its file": (
        lambda: replace(KERNEL, also="attention"),
        r"Kernel\.also: expected 'package\.module:name', found 'attention'",
    ),
    "an attribute of nothing": (lambda: replace(KERNEL, function="."), r"Kernel\.function: .* found '\.'"),
    "another letter in a layout": (
        lambda: Kernel("kernel", layout="b n h d", arguments=("q", "k", "v")),
        r"Kernel.layout: expected one of 'b h l d', 'b l h d', 'b l \(h d\)', found 'b n h d'",
    ),
    "joined heads without their number": (
        lambda: replace(KERNEL, layout="b l (h d)"),
        r"Kernel\.heads: expected the argument that holds the number of heads, .* found None",
    ),
    "a number of heads that is in the layout": (
        lambda: replace(KERNEL, heads="sharpness"),
        r"Kernel\.heads: expected .* if and only if the layout is 'b l \(h d\)', found 'sharpness'",
    ),
    "a number of heads itself": (
        lambda: replace(KERNEL, layout="b l (h d)", heads=2),
        r"Kernel\.heads: expected str \| None, found 2",
    ),
    "another letter in the output": (
        lambda: replace(KERNEL, output="b (h d) l"),
        r"Kernel\.output: expected one of '', .* 'b l \(h d\)', found 'b \(h d\) l'",
    ),
    "a query that is no argument": (
        lambda: replace(KERNEL, query="query"),
        r"Kernel\.query: expected one of its arguments \('q', 'k', .*, or an item of one, found 'query'",
    ),
    "a value of no argument": (
        lambda: replace(KERNEL, required={"skip": True}),
        r"Kernel\.required: expected one of its arguments .* found 'skip'",
    ),
    "a neutral value of no argument": (
        lambda: replace(KERNEL, neutral={"causal": False}),
        r"Kernel\.neutral: expected one of its arguments .* found 'causal'",
    ),
    "an argument that must be given or left out": (
        lambda: replace(KERNEL, neutral={"sharpness": 1}, required={"sharpness": 2}),
        r"Kernel\.required: expected arguments that are not in neutral too, found \['sharpness'\]",
    ),
    "a pair of queries and one key": (
        lambda: replace(KERNEL, arguments=("q", "text", "k", "v"), query=("q", "text"), mask=None, scale=None),
        r"Kernel\.query: expected as many names of queries as of keys and of values, found \(\('q', 'text'\), 'k",
    ),
    "a pair of no argument": (
        lambda: replace(KERNEL, query=("q.0", "text")),
        r"Kernel\.query: expected one of its arguments .* found 'text'",
    ),
    "parts of one output": (
        lambda: replace(KERNEL, output_parts=True),
        r"Kernel\.output_parts: expected several names of queries, as in query=\('q\.0', 'q\.1'\), found 'q'",
    ),
    "a mask of text without text": (
        lambda: AttentionSite("blocks.*", kernel=replace(KERNEL, mask_axes="b t")),
        r"AttentionSite\.text: expected 'first' or 'last' with a mask 'b t', found 'none'",
    ),
    "axes of no mask": (
        lambda: replace(KERNEL, mask=None, mask_axes="b k"),
        r"Kernel\.mask_axes: expected '' without a mask, found 'b k'",
    ),
    "no kernel": (
        lambda: replace(SITE, kernel=()),
        r"AttentionSite\.kernel: expected Kernel \| tuple\[Kernel, \.\.\.\], found \(\)",
    ),
    "an item of no argument": (
        lambda: replace(KERNEL, mask="options.mask"),
        r"Kernel\.mask: expected one of its arguments .* found 'options\.mask'",
    ),
    "arguments in one word": (lambda: replace(KERNEL, arguments="q k v"), r"Kernel\.arguments: expected tuple\[str"),
    "another pairing": (
        lambda: TemporalRope(4, pairing="(pair 2)"),
        r"TemporalRope\.pairing: expected \(pair two\) or \(two pair\), or an attribute path, found '\(pair 2\)'",
    ),
    "a step that is a number": (
        lambda: TemporalRope(4, step=0.5),
        r"TemporalRope\.step: expected Callable.* found 0.5",
    ),
    "channels of a model": (
        lambda: TemporalRope(lambda model: model.head_dim // 3).pairs(12),
        r"TemporalRope\.channels: expected a function from head_dim, here 12, to a whole number, found .*'head_dim'",
    ),
    "channels that are a fraction": (
        lambda: TemporalRope(lambda head_dim: head_dim / 3).span(12),
        r"TemporalRope\.channels: .* to a whole number, found 4\.0",
    ),
    "a block of a model": (
        lambda: TemporalRope(4, within=lambda model: model.head_dim).span(12),
        r"TemporalRope\.within: expected a function from head_dim, here 12",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_mistake_is_reported_in_the_terms_of_an_adapter(slip):
    make, message = SLIPS[slip]
    with pytest.raises(freeloc.errors.AdapterError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"grid": TokenGrid("video", axes="b f c h w", patch="config.patch")},
            r"TokenGrid\.patch 'config\.patch': expected three numbers, or the path of three, found 2: name each of f",
        ),
        ({"heads": "config.sizes"}, r"expected a number at ToyDiT\.config\.sizes, found \[2, 12\]"),
        ({"heads": "config.head"}, r"its adapter expects ToyDiT\.config\.head: "),
        ({"sites": (replace(SITE, layers="config.order"),)}, r"its adapter expects ToyDiT\.config\.order: "),
    ],
    ids=["a patch that is one number", "heads that are several", "heads that are not there", "layers not there"],
)
def test_a_path_to_something_else_is_reported(changes, message):
    model = ToyDiT()
    model.config = SimpleNamespace(patch=2, sizes=[2, 12])
    with pytest.raises(freeloc.errors.AdapterError, match=message):
        freeloc.patch(model, make_default(), adapter=replace(TOY, **changes))


def make_default():
    return freeloc.default_profile(ToyDiT(), trained_latent_frames=4, adapter=TOY)


@pytest.mark.parametrize("kind", [dict, SimpleNamespace])
def test_a_configuration_may_be_of_any_kind(kind):
    model = ToyDiT()
    model.config = kind(heads=2, patch=[1, 2, 2], sizes={"head": [12]})
    adapter = replace(TOY, heads="config.heads", head_dim="config.sizes.head.0", grid=TokenGrid(patch="config.patch"))
    assert adapter.shape(model) == TOY.shape(ToyDiT())
    assert adapter.patch_size(model) == (1, 2, 2)


def test_every_type_that_an_adapter_may_use_is_accepted():
    grids = [
        TokenGrid(("frames", "rows", "columns"), axes="b (f h w) c", patch=(1, 1, 1)),
        TokenGrid("sizes", axes="sample (f h w)", of="attention"),
        TokenGrid("places", axes="sample token (f h w)", patch=(1, "config.patch", 2), refused={"mask": "why"}),
    ]
    rope = TemporalRope("config.dim", theta=256, frequencies_from=torch.ones, pairing="config.half", present="rope")
    for grid in grids:
        assert Adapter("toy", "toy", ("a.B", "c.D"), (SITE, SITE), grid, rope).grid is grid
