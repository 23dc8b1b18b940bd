"""Inspecting a model that no adapter describes, and whether the adapter file written from it is right."""

import re
import shlex
from dataclasses import make_dataclass, replace
from types import SimpleNamespace

import opensora_double
import pytest
import torch
from freeloc_toy.examples import EXAMPLE as TOY
from marks import slow_unless
from torch import nn
from transformers import PretrainedConfig

import freeloc
from freeloc.cli import main
from freeloc.inspection.adapter_file import adapter_file
from freeloc.inspection.rope_search import find_rope
from freeloc.testing import CHECKS, examples, run_checks

EXAMPLES = {example.label: example for example in [*examples(), TOY]}
QUICK = ["cogvideox-2b", "ltx", "latte", "toy"]


def inspect_example(example):
    return freeloc.inspect(example.model(), example.inputs(8, 2, 3, 2))


def written(example):
    names = {}
    exec(adapter_file(inspect_example(example)), names)
    return names["ADAPTER"]


@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in EXAMPLES])
def test_the_written_file_meets_every_requirement_unedited(name):
    results = run_checks(EXAMPLES[name], written(EXAMPLES[name]))
    assert [(result.check, result.problem) for result in results if result.problem and not result.expected] == []


def test_the_inspection_matches_the_model():
    seen = inspect_example(EXAMPLES["cogvideox-1.5"])
    assert [(site.path, site.modules, site.is_candidate) for site in seen.sites] == [
        ("transformer_blocks.*.attn1", 3, True)
    ]
    assert (seen.grid.tokens, seen.grid.patch, seen.grid.axes) == ((8, 2, 3), (2, 2, 2), "b f c h w")
    assert seen.grid.text_first > 0 == seen.grid.text_last
    assert (seen.rope.first, seen.rope.pairing, seen.rope.theta) == (0, "(pair two)", 10_000.0)


def with_config(config):
    model = TOY.model()
    model.config = config
    return model


CONFIGS = {
    "dict": dict,
    "namespace": SimpleNamespace,
    "dataclass": lambda **values: make_dataclass("Config", values)(**values),
    "transformers": PretrainedConfig,
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_of_any_kind_are_supported(kind):
    values = {"num_heads": 2, "head_dim": 12, "patch_size": (1, 2, 2)}
    example = replace(TOY, model=lambda: with_config(CONFIGS[kind](**values)))
    seen, adapter = inspect_example(example), written(example)
    assert (seen.heads, seen.head_dim, seen.patch_path) == ("config.num_heads", "config.head_dim", "config.patch_size")
    assert (adapter.shape(example.model()).heads, adapter.patch_size(example.model())) == (2, (1, 2, 2))


def test_an_empty_configuration_is_no_problem():
    assert inspect_example(replace(TOY, model=lambda: with_config("small"))).heads == "heads"


def test_separate_temporal_and_spatial_attention_are_distinguished():
    seen = inspect_example(EXAMPLES["latte"])
    assert [site.path for site in seen.candidates] == ["temporal_transformer_blocks.*.attn1"]
    assert seen.grid.tokens == (8, 1, 1)
    assert seen.rope is None
    assert "rope: queries and keys of equal frames do not differ by a rotation" in seen.unknown


def test_attention_without_an_attention_function_is_found():
    example = next(example for example in opensora_double.EXAMPLES if example.adapter == "open-sora-1.2")
    seen = inspect_example(example)
    assert "torch.matmul" in {site.kernel for site in seen.sites if site.path.startswith("temporal_blocks")}


def test_an_unobservable_kernel_is_reported():
    with pytest.raises(freeloc.FreelocError, match=r"torch.nn.*Linear made no call .*freeloc.adapter.Kernel"):
        freeloc.inspect(nn.Linear(3, 3), {"input": torch.zeros(1, 2, 3)})


class Shuffled(nn.Module):
    """Attention over tokens in an order that is not row by row."""

    def forward(self, video):
        tokens = video.flatten(2).mT[:, torch.randperm(48, generator=torch.Generator().manual_seed(0))]
        return nn.functional.scaled_dot_product_attention(*[tokens[:, None]] * 3)


def test_no_adapter_is_written_without_an_observed_grid():
    seen = freeloc.inspect(Shuffled(), {"video": torch.randn(2, 6, 8, 2, 3)})
    assert seen.grid is None
    with pytest.raises(
        freeloc.FreelocError,
        match=r"written for .*Shuffled: grid: .* frame by frame, in raster order: the model regroups",
    ):
        adapter_file(seen)


class Block(nn.Module):
    """Attention over the frames at each position, over the positions of each frame, over all tokens, or none."""

    def __init__(self, over):
        super().__init__()
        self.over = over
        if over != "nothing":
            self.attention = Attention()

    def forward(self, x):
        if self.over == "nothing":
            return x
        x = x.transpose(1, 2) if self.over == "time" else x
        x = x + self.attention(x.flatten(1, 2) if self.over == "all" else x.flatten(0, 1)).view(x.shape)
        return x.transpose(1, 2) if self.over == "time" else x


class Attention(nn.Module):
    """One head, with no projection."""

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]


class Uneven(nn.Module):
    """Blocks of different kinds in one list."""

    def __init__(self, *kinds):
        super().__init__()
        self.layers = nn.ModuleList(Block(kind) for kind in kinds)

    def forward(self, video):
        x = video.flatten(3).permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        (
            ("time", "space", "time"),
            r"describe layers\.1\.attention too, where .* not the same as in layers\.0\.attention",
        ),
        (("space", "time"), r"describe layers\.0\.attention too, where .* not the same as in layers\.1\.attention"),
        (("all", "space", "time"), r"describe layers\.1\.attention, layers\.2\.attention too, where"),
        (("all", "nothing"), r"Uneven has no 'layers\.1\.attention', which its adapter expects"),
    ],
)
def test_blocks_that_paths_cannot_distinguish_are_reported_and_no_adapter_is_written(kinds, why):
    seen = freeloc.inspect(Uneven(*kinds), {"video": torch.randn(2, 6, 8, 3, 5)})
    assert seen.grid is not None
    assert seen.candidates == []
    assert re.search(rf"a person must add: layers\.\*\.attention: .*{why}", str(seen))
    with pytest.raises(freeloc.FreelocError, match=rf"no adapter can be written for .*Uneven: layers.*{why}"):
        adapter_file(seen)


def test_blocks_of_one_kind_are_named():
    seen = freeloc.inspect(Uneven("time", "time"), {"video": torch.randn(2, 6, 8, 3, 5)})
    assert [site.path for site in seen.candidates] == ["layers.*.attention"]


class Named(Attention):
    """Passes the factors of its product by name."""

    def forward(self, x):
        x = x[:, None]
        weights = torch.matmul(other=x.mT, input=x).softmax(dim=-1)
        return weights.matmul(other=x)[:, 0]


def test_matrix_products_are_found_however_their_factors_are_passed():
    model = Uneven("all")
    model.layers[0].attention = Named()
    seen = freeloc.inspect(model, {"video": torch.randn(2, 6, 8, 3, 5)})
    assert [(site.path, site.kernel) for site in seen.candidates] == [("layers.*.attention", "torch.matmul")]


@pytest.mark.parametrize("frames", [2, 3])
def test_too_few_frames_are_reported(frames, capsys):
    assert main(["inspect", "wan", "--tokens", str(frames), "2", "3", "2"]) == 2
    assert f"expected at least 4 latent frames, to find a rotation, found {frames}" in capsys.readouterr().err


def test_a_missing_video_input_is_reported():
    with pytest.raises(freeloc.FreelocError, match=r"one of the tensors \['video', 'text'\] .*, found 'latent'"):
        freeloc.inspect(TOY.model(), TOY.inputs(8, 2, 3, 2), video="latent")


@pytest.mark.parametrize("speed", [0.0, 0.3])
def test_a_rope_without_rotation_is_no_rope(speed):
    content = torch.randn(2, 1, 1, 3, 8, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 6, -1, -1)
    growing = 1 + speed * torch.arange(6.0)[:, None, None]
    assert find_rope(content * growing) is None


def test_the_command_writes_a_file(tmp_path, capsys):
    assert main(["inspect", "wan", "--output", str(tmp_path / "my_wan.py")]) == 0
    assert "* blocks.*.attn1" in capsys.readouterr().out
    names = {}
    exec((tmp_path / "my_wan.py").read_text(), names)
    assert names["ADAPTER"].sites == (freeloc.adapter.AttentionSite("blocks.*.attn1"),)


MINE = """
from freeloc.testing import examples, random_model
from freeloc_toy.examples import EXAMPLE as TOY
from dataclasses import replace

def model():
    from my_models import model
    return model()

EXAMPLE = replace(TOY, model=model)
"""


def test_the_command_checks_the_file_that_it_wrote_from_where_it_wrote_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "my drafts").mkdir()
    (tmp_path / "my_models.py").write_text("from freeloc_toy.examples import model")
    (tmp_path / "my_examples.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "my_examples:EXAMPLE", "--output", "my drafts/mine.py"]) == 0
    command = shlex.split(capsys.readouterr().out.rpartition("Check every line, then: ")[2])
    assert command == ["freeloc", "check-adapter", "my drafts/mine.py:ADAPTER", "--example", "my_examples:EXAMPLE"]
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.count("ok     toy") == len(CHECKS)


def test_a_file_without_an_adapter_is_reported(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import freeloc; ADAPTER = freeloc.adapter.AttentionSite('blocks')")
    for name, message in (
        ("mine.py:ADAPTER", "AttentionSite.path: expected one *"),
        ("no.py:ADAPTER", "expected package.module:NAME or path/to/file.py:NAME of an Adapter"),
    ):
        assert main(["check-adapter", f"{tmp_path}/{name}", "--example", "wan"]) == 2
        assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_reported(tmp_path, capsys):
    assert main(["inspect", "wan", "--output", str(tmp_path / "no" / "folder.py")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert main(["inspect", "wan", "--output", str(tmp_path / "my_wan")]) == 2
    assert "expected --output to name a .py file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.here:EXAMPLE", "expected package.module:NAME or path/to/file.py:NAME of an Example"),
        ("freeloc.testing:CHECKS", "expected freeloc.testing:CHECKS to be an Example, found tuple"),
        ("no-such-example", "no example is named 'no-such-example'"),
    ],
)
def test_the_command_says_what_it_requires(name, message, capsys):
    assert main(["inspect", name]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-adapter", "no adapter is named 'no-such-adapter'"),
        ("sana-video", "'sana-video' is refused, so there is nothing to check: its self-attention is linear"),
    ],
)
@pytest.mark.parametrize("example", [[], ["--example", "wan"]], ids=["its examples", "another example"])
def test_the_command_refuses_an_adapter_that_is_none(name, message, example, capsys):
    assert main(["check-adapter", name, *example]) == 2
    assert message in capsys.readouterr().err


def test_the_command_checks_the_named_adapter_on_another_ones_example(capsys):
    assert main(["check-adapter", "mochi", "--example", "wan"]) == 1
    assert "FAILED wan                  check_it_matches_its_class_only" in capsys.readouterr().out


def test_checking_an_adapter_without_an_example_says_what_to_give(capsys):
    assert main(["check-adapter", "wan-original"]) == 2
    assert "--example package.module:NAME" in capsys.readouterr().err
