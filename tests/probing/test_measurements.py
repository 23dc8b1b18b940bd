"""Measurements: their files, how they are merged, and what is chosen from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_wan
from small_probe import PROFILE, clips, made_up, run_of

import freeloc
from freeloc.errors import ProbeError
from freeloc.probing import Local, Loss, Output, Rule, Sensitivity, Table
from freeloc.profile.schema import POLICIES


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


def test_files_and_merging(model: Any, tmp_path: Path) -> None:
    one = freeloc.probe(model, run_of(model), profile=PROFILE, prompts=["a"])
    two = freeloc.probe(model, run_of(model), profile=PROFILE, prompts=["bb"])
    both = freeloc.probe(model, run_of(model), profile=PROFILE, prompts=["a", "bb"])
    merged = one.merge(two)
    for name in both.tables:
        assert torch.equal(merged.table(name).values, both.table(name).values)
    assert merged.facts == both.facts
    with pytest.raises(ProbeError, match=r"'local\.\w+( \w+)?' can be merged where only the prompts or clips differ"):
        one.merge(one)
    other = make_wan(seed=1)
    of_other = freeloc.probe(other, run_of(other), profile=PROFILE)
    with pytest.raises(ProbeError, match="expected measurements of one model, found two: small"):
        one.merge(of_other)
    output = freeloc.probe(model, run_of(model), Output(shifts=(3,), steps=(0, 2)), profile=PROFILE)
    all_depths = merged.merge(output)
    assert all_depths.depths == ["local", "output"]
    all_depths.save(tmp_path / "found.safetensors")
    loaded = Sensitivity.load(tmp_path / "found.safetensors")
    assert loaded.facts == all_depths.facts
    assert list(loaded.tables) == list(all_depths.tables)
    for name, table in loaded.tables.items():
        assert table.axes == all_depths.table(name).axes
        assert torch.equal(table.values, all_depths.table(name).values)
    assert list(tmp_path.iterdir()) == [tmp_path / "found.safetensors"]
    position, context = loaded.compare(loaded)["local", "local"]
    assert (position, context) == (1, 1)
    with pytest.raises(ProbeError, match=r"'loss\.value' was not measured: found local"):
        loaded.summary("loss")


def test_files_that_are_refused(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "wrong.safetensors"
    with pytest.raises(ProbeError, match="cannot read the measurements"):
        Sensitivity.load(path)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(ProbeError, match="cannot read the measurements"):
        Sensitivity.load(path)
    good = freeloc.probe(model, run_of(model), profile=PROFILE)
    good.save(path)
    header = json.loads(_metadata(path)["freeloc"])
    tensors = {name: table.values.contiguous() for name, table in good.tables.items()}
    wrong = {
        "holds no measurements of freeloc": None,
        "expected measurements of schema_version 1, found 2": header | {"schema_version": 2},
        "expected the tensors": header | {"axes": {}},
        "expected a tensor of shape": header | {"axes": {name: {"layers": [1]} for name in tensors}},
        "facts": header | {"facts": {}},
    }
    for words, content in wrong.items():
        save_file(tensors, path, None if content is None else {"freeloc": json.dumps(content)})
        with pytest.raises(ProbeError, match=words):
            Sensitivity.load(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_tables() -> None:
    table = Table(torch.tensor([[1.0, torch.nan], [3.0, 5.0]]), {"layers": [0, 1], "heads": ["a", "b"]})
    assert table.over("layers").values.tolist() == [1.0, 4.0]
    assert table.over("heads", "layers").values.tolist() == [[1.0, 3.0], [pytest.approx(torch.nan, nan_ok=True), 5.0]]
    assert table.without(heads="a").values.tolist()[1] == [5.0]
    with pytest.raises(ProbeError, match=r"expected one of \['a', 'b'\] on the axis 'heads', found 'c'"):
        table.at(heads="c")
    with pytest.raises(ProbeError, match=r"expected a tensor of shape \(1,\)"):
        Table(torch.zeros(2), {"layers": [0]})


def test_ranks() -> None:
    from freeloc.probing import rank_correlation

    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == -1
    assert rank_correlation(torch.tensor([1.0, 1, 3]), torch.tensor([2.0, 2, 9])) == 1


def of_local(change: list[float], logits: list[float]) -> Sensitivity:
    axes = {"layers": [0, 1, 2, 3], "heads": [0, 1], "steps": [0], "prompts": ["a"]}
    by_layer = [
        torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(4, 2, 1, 1) for values in (change, logits)
    ]
    return made_up(local_change=Table(by_layer[0], axes), local_logits=Table(by_layer[1], axes))


def of_video(window: list[list[float]]) -> Sensitivity:
    """Scores under a window, (layers, prompts), beside 1 where nothing is perturbed."""
    prompts = [*"abc"[: len(window[0])]]
    scores = torch.tensor(window)[None, :, None]
    axes = {"scorers": ["x"], "layers": [0, 1, 2, 3], "perturbations": ["window"], "prompts": prompts}
    base = Table(torch.ones(1, len(prompts)), {"scorers": ["x"], "prompts": prompts})
    return made_up(video_base=base, video_score=Table(scores, axes))


def of_loss(**values: list[list[float]]) -> Sensitivity:
    """Losses (layers, clips) by rest and policy."""
    axes = {"rest": [*POLICIES], "policies": [*POLICIES], "layers": [0, 1, 2, 3], "levels": [0.5], "clips": [0, 1, 2]}
    table = torch.full((4, 4, 4, 1, 3), torch.nan)
    for pair, losses in values.items():
        rest, policy = pair.split("_")
        table[POLICIES.index(rest), POLICIES.index(policy)] = torch.tensor(losses)[:, None]
    return made_up(loss_value=Table(table, axes))


NAN = torch.nan


ONES = [[1.0, 1.0, 1.0]] * 4


FALLS = [[0.5, 0.5, 0.5], [1.5, 1.5, 1.5], [0.5, 1.5, 1.0], [0.9, 0.9, 0.9]]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (of_local([1, 2, NAN, NAN], [1, 2, 3, 4]), "the sensitivity to context of every layer, found none for layer 2"),
        (of_local([1, 2, 3, 4], [1, NAN, 3, 4]), "the sensitivity to positions of every layer, found none for layer 1"),
        (of_local([1, 2, 3, 4], [1, 2, 3, torch.inf]), "to positions of every layer, found none for layer 3"),
        (
            of_video([[1.0, NAN], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
            "to context of every layer, found none for layer 0",
        ),
        (of_video([[0.5]] * 4), "expected at least 2 prompts, for a standard error, found 1"),
        (of_loss(vrpr_vrpr=ONES), "losses with vrpr on all other layers to choose from, found those of vrpr"),
        (of_loss(tsa_tsa=ONES, tsa_none=FALLS), "losses with none on all other layers .* found those of nothing"),
        (of_loss(vrpr_vrpr=ONES, vrpr_tsa=[*FALLS[:3], [NAN, 1, 1]]), "loss with tsa of every layer, .* layer 3"),
    ],
)
def test_no_policy_is_chosen_without_a_number(found: Sensitivity, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        found.to_profile()
    assert str(found).count(" ?") == 4  # the numbers are shown, and why there is no policy
    assert "no policy: expected " in str(found)


def test_a_choice_is_made_where_missing_numbers_are_expected() -> None:
    assert of_video([[0.5, 0.51], [1.0, 1.1], [1.5, 0.4], [0.1, 0.11]]).to_profile().layers == {
        "none": [1, 2],
        "tsa": [0, 3],
    }
    on_vrpr = of_loss(vrpr_vrpr=ONES, vrpr_tsa=FALLS).to_profile()
    assert on_vrpr.layers == {"vrpr": [1, 2], "tsa": [0, 3]}
    assert "on 3 clips, 9 latent frames" in on_vrpr.provenance.notes
    on_nothing = of_loss(none_none=ONES, none_tsa=FALLS)
    assert on_nothing.to_profile().layers == {"none": [1, 2], "tsa": [0, 3]}
    assert on_nothing.summary().context.tolist() == pytest.approx([0.5, -0.5, 0, 0.1], abs=1e-6)
    assert "on 1 prompt, 9 latent frames" in of_local([1, 2, 3, 4], [1, 2, 3, 4]).to_profile().provenance.notes


def test_a_layer_that_computes_no_numbers_is_named() -> None:
    broken = make_wan()
    broken.blocks[2].attn1.to_q.weight.fill_(torch.nan)
    for depth in (Local(), Output(shifts=(3,), steps=(0,))):
        found = freeloc.probe(broken, run_of(broken), depth, profile=PROFILE)
        with pytest.raises(ProbeError, match=r"found none for layer \d: a layer that never runs"):
            found.to_profile()
    with pytest.raises(
        ProbeError, match=r"expected the model to return numbers, found nan at noise level 0\.3, clip 0"
    ):
        freeloc.probe(broken, run_of(broken), Loss(clips()), profile=PROFILE)


def test_models_of_other_depths_are_not_compared() -> None:
    found = of_local([1, 2, 3, 4], [1, 2, 3, 4])
    tiny = Sensitivity(found.tables, found.facts.model_copy(update={"profile": freeloc.load_profile("tiny-wan")}))
    with pytest.raises(
        ProbeError, match="models with equally many layers, found 4 of small and 8 of freeloc's tiny Wan"
    ):
        found.compare(tiny)


def test_the_choice_for_heads_is_printed() -> None:
    axes = {"layers": [0, 1, 2, 3], "heads": [0, 1], "steps": [0], "prompts": ["a"]}
    values = torch.tensor([[9.0, 9.0], [0.0, 9.0], [0.0, 0.0], [9.0, 9.0]])[:, :, None, None]
    found = made_up(local_change=Table(torch.ones(4, 2, 1, 1), axes), local_logits=Table(values, axes))
    still = found.to_profile(rule=Rule(context=2), heads=True)
    assert [line.split(maxsplit=3)[3] for line in found.text(still).splitlines()[2:]] == [
        "vrpr",
        "none x1, vrpr x1",
        "none",
        "vrpr",
    ]
