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


def of_video(scores: list[list[float]], perturbation: str = "+3") -> Sensitivity:
    """Scores under a perturbation, (layers, prompts), beside 1 where nothing is perturbed."""
    prompts = [*"abcdefgh"[: len(scores[0])]]
    both = torch.tensor(scores)[None, :, None].expand(1, 4, 2, len(prompts))
    axes = {"scorers": ["x"], "layers": [0, 1, 2, 3], "perturbations": [perturbation, "window"], "prompts": prompts}
    base = Table(torch.ones(1, len(prompts)), {"scorers": ["x"], "prompts": prompts})
    return made_up(video_base=base, video_score=Table(both, axes))


Losses = dict[tuple[str, str], list[list[float]]]
"""Losses (layers, clips) by rest and policy."""


def of_loss(whole: Losses, moving: Losses | None = None) -> Sensitivity:
    """Both losses; by default the same on moving places as on whole frames."""
    tables = {}
    for name, values in (("loss_value", whole), ("loss_moving", whole if moving is None else moving)):
        clips = [*range(len(next(iter(values.values()))[0]))]
        axes = {"rest": [*dict.fromkeys(rest for rest, _ in values)]}
        axes |= {"policies": [policy for policy in POLICIES if any(policy in pair for pair in values)]}
        table = torch.full((len(axes["rest"]), len(axes["policies"]), 4, 1, len(clips)), torch.nan)
        for (rest, policy), losses in values.items():
            table[axes["rest"].index(rest), axes["policies"].index(policy)] = torch.tensor(losses)[:, None]
        tables[name] = Table(table, axes | {"layers": [0, 1, 2, 3], "levels": [0.5], "clips": clips})
    return made_up(**tables)


NAN = torch.nan

VRPR, TSA, ON_NONE = ("vrpr", "vrpr"), ("vrpr", "tsa"), ("none", "none")

ONES = [[1.0, 1.0, 1.0]] * 4


FALLS = [[0.5, 0.5, 0.5], [1.5, 1.5, 1.5], [0.5, 1.5, 1.0], [0.9, 0.9, 0.9]]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (of_local([1, 2, 3, 4], [1, NAN, 3, 4]), "the sensitivity to positions of every layer, found none for layer 1"),
        (of_local([1, 2, 3, 4], [1, 2, 3, torch.inf]), "to positions of every layer, found none for layer 3"),
        (
            of_video([[1.0, NAN], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
            "to positions of every layer, found none for layer 0",
        ),
        (of_video([[0.5]] * 4), "expected at least 2 prompts, for a standard error, found 1"),
        (
            of_loss({VRPR: ONES}),
            r"loss with another policy on one layer and vrpr on all others, .*: measure it with freeloc.probing.Loss\(",
        ),
        (
            of_loss({VRPR: ONES, TSA: ONES, ("none", "vrpr+tsa"): ONES}),
            r"loss with none and with vrpr\+tsa on one layer and vrpr on all others, which was not measured: measure "
            r"it with freeloc.probing.Loss\(clips, compared=\[\('vrpr', 'none'\), \('vrpr', 'tsa'\), \('vrpr', 'vrp",
        ),
        (of_loss({VRPR: ONES, TSA: [*FALLS[:3], [NAN, 1, 1]]}), "loss with tsa of every layer, .* layer 3"),
        (of_loss({VRPR: ONES, TSA: ONES}, {VRPR: ONES, TSA: [[NAN] * 3] * 4}), "loss with tsa on one layer and vrpr"),
    ],
)
def test_no_policy_is_chosen_without_a_number(found: Sensitivity, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        found.to_profile()
    assert str(found).count(" ?") == 4  # the numbers are shown, and why there is no policy
    assert "no policy: expected " in str(found)


def test_losses_of_several_other_policies_are_no_base() -> None:
    found = of_loss({("none", "none"): ONES, ("none", "tsa"): ONES, ("tsa", "tsa"): ONES, ("tsa", "none"): ONES})
    words = (
        r"expected losses with vrpr, or with one other policy, on all other layers, found none and tsa: measure them "
        r"with freeloc.probing.Loss\(clips, compared=\[\('vrpr', 'none'\), .*\]\)"
    )
    with pytest.raises(ProbeError, match=words):
        found.to_profile()
    assert "expected losses with vrpr, or" in str(found)


def test_loss_chooses_what_was_measured_to_be_better() -> None:
    on_vrpr = of_loss({VRPR: ONES, TSA: FALLS}).to_profile()
    assert on_vrpr.layers == {"vrpr": [1, 2], "tsa": [0, 3]}
    assert "on 3 clips, 9 latent frames" in on_vrpr.provenance.notes
    on_nothing = of_loss({ON_NONE: ONES, ("none", "tsa"): FALLS})
    assert on_nothing.to_profile().layers == {"none": [1, 2], "tsa": [0, 3]}
    assert on_nothing.summary().context.tolist() == pytest.approx([0.5, -0.5, 0, 0.1], abs=1e-6)
    assert on_nothing.summary().more["context, moving"][0].tolist() == pytest.approx([0.5, -0.5, 0, 0.1], abs=1e-6)


def test_how_many_standard_errors_are_needed_is_printed() -> None:
    few, many = (of_loss({VRPR: [[1.0] * count] * 4, TSA: [[0.5] * count] * 4}) for count in (4, 16))
    last = str(few).splitlines()[-1]
    assert last == "of 4 clips, a policy needs 9.8 standard errors; with 8 clips or more, it needs few"
    assert few.picture().get_supxlabel() == last
    assert str(many).splitlines()[-1] == "of 16 clips, a policy needs 3.6 standard errors"


def test_neither_loss_may_rise() -> None:
    """Layers: lower by both; by one, and within the error by the other; by one, but higher by the other; by neither."""
    same, lower, higher = [1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], [1.1, 1.1, 1.1, 1.1]
    unclear = [1.3, 0.8, 1.2, 0.8]
    whole = {VRPR: [same] * 4, TSA: [lower, unclear, higher, unclear]}
    moving = {VRPR: [same] * 4, TSA: [lower, lower, lower, unclear]}
    for first, second in ((whole, moving), (moving, whole)):
        assert of_loss(first, second).to_profile().layers == {"vrpr": [2, 3], "tsa": [0, 1]}
    found = of_loss(whole, moving)
    assert found.to_profile(rule=Rule(loss="whole")).layers == {"vrpr": [1, 2, 3], "tsa": [0]}
    assert found.to_profile(rule=Rule(loss="moving")).layers == {"vrpr": [3], "tsa": [0, 1, 2]}
    assert "loss=both" in found.to_profile().provenance.notes
    with pytest.raises(ProbeError, match=r"Rule\(loss=...\) to be one of both, whole, moving, found 'mving'"):
        Rule(loss="mving")


def test_the_largest_sum_of_both_falls_decides() -> None:
    """A third of a small loss is more than a tenth of a large one."""

    def at(value: float) -> list[list[float]]:
        return [[value] * 3] * 4

    both = ("vrpr", "vrpr+tsa")
    whole = {VRPR: at(1.0), TSA: at(0.99), both: at(0.98)}
    moving = {VRPR: at(9.0), TSA: at(6.0), both: at(8.0)}
    assert of_loss(whole, moving).to_profile().layers == {"tsa": [0, 1, 2, 3]}


def test_files_without_the_loss_on_moving_places_are_not_silently_read_in_half() -> None:
    both = of_loss({VRPR: ONES, TSA: FALLS})
    old = Sensitivity({"loss.value": both.table("loss.value")}, both.facts)
    with pytest.raises(ProbeError, match=r"table 'loss.moving', which was not measured: .*Rule\(loss='whole'\)"):
        old.to_profile()
    assert old.to_profile(rule=Rule(loss="whole")).layers == {"vrpr": [1, 2], "tsa": [0, 3]}
    assert "no policy: expected the loss on moving places" in str(old)


@pytest.mark.parametrize("samples", [2, 4, 8])
def test_chance_is_not_taken_for_a_better_policy(samples: int) -> None:
    """Of 4000 comparisons without any difference, as few are better by chance with few clips as with many."""
    generator = torch.Generator().manual_seed(samples)
    better = 0
    for _ in range(1000):
        noise = (1 + 0.01 * torch.randn(4, samples, generator=generator)).tolist()
        layers = of_loss({VRPR: [[1.0] * samples] * 4, TSA: noise}).to_profile(rule=Rule(errors=2)).layers
        better += len(layers.get("tsa", []))
    assert better < 0.035 * 4000  # 2.3 % of the normal distribution; 15 % beyond 2 standard errors of 2 samples


def test_video_leaves_alone_only_what_is_measured_not_to_matter() -> None:
    """Layers: the score falls; it does not; it may or may not; it falls."""
    scores = [[0.5, 0.5, 0.51, 0.5], [1.0, 1.0, 1.0, 1.0], [1.5, 0.4, 1.0, 1.0], [0.1, 0.1, 0.1, 0.11]]
    assert of_video(scores).to_profile().layers == {"vrpr": [0, 2, 3], "none": [1]}
    unaffected = of_video([[1.0] * 4] * 4)  # by a score that reacts to nothing
    assert unaffected.to_profile().layers == {"vrpr": [0, 1, 2, 3]}


def test_only_loss_gives_tsa() -> None:
    """However much a window changes."""
    changes = [9.0, 1.0, 1.0, 1.0]
    found = of_local(changes, [1, 2, 0, 4])
    assert found.to_profile().layers == {"none": [2], "vrpr": [0, 1, 3]}
    assert "on 1 prompt, 9 latent frames" in found.to_profile().provenance.notes
    printed = str(found).splitlines()
    assert printed[2].split() == ["0", "1", "9", "vrpr"]
    assert printed[-1].startswith("context is shown, not used: ")
    assert printed[-1] in found.picture().get_supxlabel()
    without_rope = of_local(changes, [0, 0, 0, 0])
    assert without_rope.to_profile().layers == {"none": [0, 1, 2, 3]}
    assert of_local([1, 2, NAN, NAN], [1, 2, 3, 4]).to_profile().layers == {"vrpr": [0, 1, 2, 3]}
    assert of_video([[0.1] * 4] * 4).to_profile().layers == {"vrpr": [0, 1, 2, 3]}


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
    still = found.to_profile(heads=True)
    assert [line.split(maxsplit=3)[3] for line in found.text(still).splitlines()[2:6]] == [
        "vrpr",
        "none x1, vrpr x1",
        "none",
        "vrpr",
    ]
