"""Pictures, read back pixel by pixel."""

import sys
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

import freeloc
from freeloc import FreelocError, Profile
from freeloc.cli import main
from freeloc.errors import ProbeError
from freeloc.pictures import (
    curves,
    drift_chart,
    layer_chart,
    plan_tables,
    policy_colours,
    scatter,
    sensitivity_map,
    write,
)
from freeloc.pictures.plans import FRAME_MASK_COLOURS
from freeloc.plans.baselines import sliding_window
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Method
from freeloc.plans.policies import POLICIES as OWN_METHODS
from freeloc.probing import ProbeFacts, Sensitivity, Table
from freeloc.profile.files import with_choice
from freeloc.profile.schema import POLICIES, PolicyPart
from freeloc.registry import registry
from freeloc.tiny.settings import LAYER_CHOICE, with_layers

POLICY_COLOURS = {method.name: method.colour for method in OWN_METHODS}
MIXED = with_layers(freeloc.load_profile("tiny-wan"), ["none", "vrpr", "tsa", "vrpr+tsa"] * 2)


def pixels(path: Path) -> Tensor:
    """(height, width, 3) uint8."""
    image = Image.open(path).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def of_colour(colour: str) -> Tensor:
    return torch.tensor([int(colour[place : place + 2], 16) for place in (1, 3, 5)], dtype=torch.uint8)


def shares(path: Path, colours: list[str]) -> list[int]:
    """How many pixels have each colour."""
    picture = pixels(path)
    return [int((picture == of_colour(colour)).all(dim=-1).sum()) for colour in colours]


def drawn(axes: Axes, picture: Tensor, values: Tensor) -> Tensor:
    """The pixel at the centre of each cell of a drawn image, (rows, columns, 3)."""
    rows, columns = torch.meshgrid(torch.arange(len(values)), torch.arange(len(values[0])), indexing="ij")
    places = axes.transData.transform(torch.stack([columns, rows], dim=-1).reshape(-1, 2).numpy())
    places = torch.as_tensor(places).round().long()
    return picture[len(picture) - 1 - places[:, 1], places[:, 0]].reshape(*values.shape, 3)


def measured(profile: Profile, **tables: Table) -> Sensitivity:
    facts = ProbeFacts(
        profile=profile, fingerprint="f" * 64, latent_frames=[81], prompts=["a", "b"], seed=0, settings={}, versions={},
        command="made up",
    )  # fmt: skip
    return Sensitivity({name.replace("_", "."): table for name, table in tables.items()}, facts)


@pytest.fixture
def local() -> Sensitivity:
    """Layer 3 depends most on positions, layer 5 on context; head 2 and step 1 have the largest values."""
    axes = {"layers": [*range(8)], "heads": [*range(4)], "shifts": [-20, 20], "steps": [0, 5], "prompts": ["a", "b"]}
    logits = torch.rand(8, 4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    logits[3, 2, :, 1] = 4.0
    change = logits[:, :, 0].clone().flip(0)
    no_shifts = {name: labels for name, labels in axes.items() if name != "shifts"}
    return measured(MIXED, local_logits=Table(logits, axes), local_change=Table(change, no_shifts))


def test_a_plan_as_its_two_tables(tmp_path: Path) -> None:
    plan = freeloc.frame_plan(freeloc.load_profile("wan2.1"), layer=0, frames=81)
    figure = plan_tables(plan, "a title")
    write(figure, tmp_path / "plan.png")
    picture = pixels(tmp_path / "plan.png")
    seen = drawn(figure.axes[1], picture, plan.visibility)
    colours = torch.stack([of_colour(colour) for colour in FRAME_MASK_COLOURS.values()])
    below = torch.ones(81, 81).tril().bool()  # the legend is above the diagonal,
    below[:, 0] = below[80] = False  # and the frame's line over the cells at the edge
    assert torch.equal(seen[below], colours[plan.visibility.long()][below])
    # Blue where the key is later, red where it is earlier, darker with the distance that it is given.
    positions = drawn(figure.axes[0], picture, plan.positions).double()
    redness = positions[..., 0] - positions[..., 2]
    assert (redness[plan.positions >= 2] > 0).all()
    assert (redness[plan.positions <= -2] < 0).all()
    row, given = positions[70, 1:80], plan.positions[70, 1:80]
    same = given[:, None] == given[None, :]
    assert same.sum() > 79
    assert (row[:, None] == row[None, :]).all(dim=-1)[same].all()


def test_the_bias_of_a_plan_is_its_third_table(tmp_path: Path) -> None:
    bias = torch.tensor([[0.0, -2.0], [1.0, 2.0]], dtype=torch.float64)
    whole = FramePlan.identity(2)
    hidden = whole.visibility.clone()
    hidden[1, 1] = 0  # its bias is not drawn
    figure = plan_tables(FramePlan(whole.positions, hidden, bias=bias))
    write(figure, tmp_path / "plan.png")
    axes = figure.axes[2]
    assert axes.get_title() == "bias, added to the logits"
    cells = drawn(axes, pixels(tmp_path / "plan.png"), bias).double()
    redness = cells[..., 0] - cells[..., 2]
    assert redness[1, 0] > 0 > redness[0, 1]
    assert redness[0, 0].abs() < 3 > redness[1, 1].abs()


def test_a_plan_that_changes_nothing_and_one_of_a_single_frame(tmp_path: Path) -> None:
    for frames in (1, 5):
        write(plan_tables(FramePlan.identity(frames)), tmp_path / f"{frames}.png")
        _, yellow, blue = shares(tmp_path / f"{frames}.png", list(FRAME_MASK_COLOURS.values()))
        assert blue > 20 * yellow  # which is in the legend only


def test_each_layer_has_the_colour_of_its_policy(tmp_path: Path) -> None:
    figure = layer_chart(MIXED)
    write(figure, tmp_path / "layers.png")
    cells = drawn(figure.axes[0], pixels(tmp_path / "layers.png"), torch.zeros(1, 8))[0]
    assert torch.equal(cells, torch.stack([of_colour(POLICY_COLOURS[policy]) for policy in POLICIES] * 2))


def test_each_head_has_the_colour_of_its_policy(tmp_path: Path) -> None:
    profile = MIXED.model_copy(update={"heads": {"1": {"none": [0, 2]}, "6": {"vrpr+tsa": [3]}}})
    figure = layer_chart(profile)
    write(figure, tmp_path / "heads.png")
    cells = drawn(figure.axes[0], pixels(tmp_path / "heads.png"), torch.zeros(4, 8))
    for layer in range(8):
        expected = torch.stack([of_colour(POLICY_COLOURS[policy]) for policy in profile.head_policies(layer)])
        assert torch.equal(cells[:, layer], expected)


def test_any_method_has_its_colour_and_the_legend_names_what_is_used(tmp_path: Path) -> None:
    policies = {name: PolicyPart(method="tsa", settings={"stripe": 0.5}) for name in ("_wide $\\bad$", "narrow")}
    profile = with_choice(
        MIXED.model_copy(update={"policies": policies}),
        {"riflex": [0, 1], "tsa": [2], "_wide $\\bad$": [3, 4], "narrow": [5], "vrpr": [6, 7]},
    )
    colours = policy_colours(profile)
    methods = {name: registry().methods.get(name).colour for name in ("vrpr", "tsa", "riflex")}
    assert {name: colours[name] for name in methods} == methods
    assert len(set(colours.values())) == 5
    figure = layer_chart(profile)
    write(figure, tmp_path / "layers.png")
    cells = drawn(figure.axes[0], pixels(tmp_path / "layers.png"), torch.zeros(1, 8))[0]
    assert torch.equal(cells, torch.stack([of_colour(colours[profile.policy(layer)]) for layer in range(8)]))
    message = [text.get_text() for text in figure.legends[0].get_texts()]
    assert message == ["vrpr", "tsa", "riflex", " _wide $\\bad$", "narrow"]


def test_profiles_plot_draws_the_plan_of_any_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def per_head(profile: Profile, layer: int, frames: int) -> list[FramePlan]:
        return [FramePlan.identity(frames), *[sliding_window(frames, 3)] * 3]

    owners = registry().methods.owners
    monkeypatch.setitem(owners, "per-head", [("a package", Method("per-head", per_head))])
    policies = {"../soft": PolicyPart(method="tsa", settings={"stripe": 0.5})}
    choice = {"../soft": [0, 1], "riflex": [2, 3], "none": [4, 5, 6, 7]}
    profile = with_choice(MIXED.model_copy(update={"policies": policies}), choice, {"5": {"per-head": [3]}})
    profile.save(tmp_path / "mine.json")
    made = tmp_path / "there" / "made"
    assert main(["profiles", "plot", str(tmp_path / "mine.json"), "--output", str(made), "--frames", "30"]) == 0
    names = ["layers.png", "plan-..-soft.png", "plan-per-head.png", "plan-riflex.png"]
    assert sorted(path.name for path in made.iterdir()) == names
    assert list(made.parent.iterdir()) == [made]
    white, _, blue = shares(made / "plan-per-head.png", list(FRAME_MASK_COLOURS.values()))
    assert white > blue  # a window, as of head 3


def test_bars_as_high_as_the_measurements(local: Sensitivity, tmp_path: Path) -> None:
    figure = layer_chart(MIXED, local)
    found = local.summary()
    for axes, values, errors in zip(
        figure.axes, (found.position, found.context), (found.position_error, found.context_error), strict=False
    ):
        assert [bar.get_height() for bar in axes.patches] == values.tolist()
        colours = [
            f"#{''.join(f'{round(255 * part):02x}' for part in bar.get_facecolor()[:3])}" for bar in axes.patches
        ]
        assert colours == [POLICY_COLOURS[policy] for policy in POLICIES] * 2
        middle = axes.containers[0].lines[2][0].get_segments()
        assert [segment[1][1] - segment[0][1] for segment in middle] == pytest.approx((2 * errors).tolist())
    write(figure, tmp_path / "with-bars.png")
    write(layer_chart(MIXED), tmp_path / "without.png")
    assert min(shares(tmp_path / "with-bars.png", list(POLICY_COLOURS.values()))) > 0
    assert len(pixels(tmp_path / "with-bars.png")) > len(pixels(tmp_path / "without.png"))


def test_one_prompt_gives_bars_without_errors_and_no_positions_no_bars(local: Sensitivity) -> None:
    table, change = local.table("local.logits"), local.table("local.change")
    one, alone = (Table(found.values[..., :1], found.axes | {"prompts": ["a"]}) for found in (table, change))
    figure = layer_chart(MIXED, measured(MIXED, local_logits=one, local_change=alone))
    assert figure.axes[0].containers[0].errorbar is None
    blind = Table(torch.full_like(table.values, torch.nan), table.axes)
    figure = layer_chart(MIXED, measured(MIXED, local_logits=blind, local_change=change))
    assert [axes.get_ylabel() for axes in figure.axes] == ["sensitivity\nto context", ""]


def test_a_map_is_brightest_where_the_measurement_is_highest(local: Sensitivity, tmp_path: Path) -> None:
    figure = sensitivity_map(local, "local.logits")
    write(figure, tmp_path / "map.png")
    picture = pixels(tmp_path / "map.png")
    for axes, shape, place in zip(figure.axes, ((8, 4), (8, 2)), ((3, 2), (3, 1)), strict=False):
        brightness = drawn(axes, picture, torch.zeros(shape)).double().sum(dim=-1)
        assert divmod(int(brightness.argmax()), shape[1]) == place
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["0", "5"]


def test_a_drift_chart_draws_mean_and_error() -> None:
    still = torch.full((8, 4, 4, 3), 0.5)
    fading = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 4, 4, 3)
    lines = drift_chart({"still": [still], "both": [still, fading]}, bold="still").axes[0].lines
    assert lines[0].get_color() == "black"
    assert lines[0].get_ydata().tolist() == [0.0] * 8
    half = freeloc.metrics.drift_curve(fading) / 2
    assert lines[1].get_ydata().tolist() == pytest.approx(half.tolist())
    band = drift_chart({"both": [still, fading]}).axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(float(2 * half[-1]))  # mean and standard error are equal here


def test_lengths_are_on_a_logarithmic_axis() -> None:
    axes = curves({"a": ([1, 2, 8], [0.0, 1, 2], [0.0, 0, 0])}, "length", "drift", lengths=[1, 2, 8]).axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1x", "2x", "8x"]


def test_the_same_figure_gives_the_same_bytes(local: Sensitivity, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(layer_chart(MIXED, local), tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_refusals(local: Sensitivity, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="expected measurements of 30 layers, as the profile has, found 8"):
        layer_chart(freeloc.load_profile("wan2.1"), local)
    with pytest.raises(ProbeError, match=r"'local\.nothing' was not measured"):
        sensitivity_map(local, "local.nothing")
    plain = measured(MIXED, video_score=Table(torch.zeros(8), {"layers": [*range(8)]}))
    with pytest.raises(ProbeError, match="expected a table with layers and heads or steps"):
        sensitivity_map(plain, "video.score")
    (tmp_path / "file").write_text("")
    with pytest.raises(FreelocError, match="cannot write the picture"):
        write(layer_chart(MIXED), tmp_path / "file" / "layers.png")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FreelocError, match=r'pip install "freeloc\[plot\]"'):
        layer_chart(MIXED)


@pytest.mark.slow
def test_layers_are_drawn_by_the_depth_that_chose(tmp_path: Path) -> None:
    drawn = {}
    for name, more in {"usual": [], "loss": ["--depth", "loss"], "video": ["--depth", "video"]}.items():
        assert (
            main(["profiles", "plot", str(LAYER_CHOICE), "--output", str(tmp_path / name), "--frames", "41", *more])
            == 0
        )
        drawn[name] = (tmp_path / name / "layers.png").read_bytes()
    assert drawn["usual"] == drawn["loss"] != drawn["video"]


def test_profiles_plot(local: Sensitivity, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "mine.json"
    local.to_profile(profile)
    assert main(["profiles", "plot", str(profile), "--output", str(tmp_path / "made"), "--frames", "41"]) == 0
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    kinds = {policy for policy in POLICIES[1:] if policy in freeloc.load_profile(profile).layers}
    assert names == sorted(
        [
            "layers.png",
            "depth-local.png",
            "local.change.png",
            "local.logits.png",
            *(f"plan-{kind}.png" for kind in kinds),
        ]
    )
    assert sorted(Path(line).name for line in capsys.readouterr().out.split()) == names
    assert main(["profiles", "plot", "wan2.1", "--depth", "local", "--output", str(tmp_path / "none")]) == 2
    assert "expected measurements with --depth" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_no_table_is_drawn_outside_the_folder(local: Sensitivity, tmp_path: Path) -> None:
    mine, axes = tmp_path / "there" / "mine.json", {"layers": [*range(8)], "heads": [*range(4)]}
    mine.parent.mkdir()
    extra = {name: Table(torch.zeros(8, 4), axes) for name in ("../../escaped/local", str(tmp_path / "absolute"))}
    Sensitivity({**local.tables, **extra}, local.facts).to_profile(mine, depth="local")
    status = main(["profiles", "plot", str(mine), "--output", str(tmp_path / "there" / "made"), "--frames", "9"])
    assert status in (0, 2)  # drawn under another name, or refused
    assert list(tmp_path.iterdir()) == [mine.parent]


def test_a_name_with_dollars_is_no_formula(local: Sensitivity, tmp_path: Path) -> None:
    named = MIXED.model.model_copy(update={"name": r"cost $5 \bad$ model"})
    profile = MIXED.model_copy(update={"model": named})
    axes = {"layers": [*range(8)], "steps": [r"$\bad$", "\x1b\n"]}
    found = measured(profile, local_extra=Table(torch.zeros(8, 2), axes))
    write(layer_chart(profile, local), tmp_path / "layers.png")
    figure = sensitivity_map(found, "local.extra")
    write(figure, tmp_path / "steps.png")
    assert figure.get_suptitle() == r"cost $5 \bad$ model: local.extra"
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [r"$\bad$", r"\x1b\n"]


@pytest.mark.parametrize(
    ("facts", "more", "found"),
    [
        (
            {"trained_latent_frames": 100_000},
            [],
            "latent frames (--frames, by default 4 trained lengths) to draw, found 399997",
        ),
        ({}, ["--frames", "1001"], "latent frames (--frames, by default 4 trained lengths) to draw, found 1001"),
        ({"heads": 1001}, [], "heads to draw, found 1001"),
    ],
)
def test_pictures_that_would_be_too_large_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, int], more: list[str], found: str
) -> None:
    profile = MIXED.model_copy(update={"model": MIXED.model.model_copy(update=facts), "evidence": None})
    profile.save(tmp_path / "mine.json")
    assert main(["profiles", "plot", str(tmp_path / "mine.json"), "--output", str(tmp_path / "made"), *more]) == 2
    assert f"expected at most 1000 {found}" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_many_layers_and_heads_fit_a_picture(tmp_path: Path) -> None:
    facts = MIXED.model.model_copy(update={"layers": 1000, "heads": 300})
    profile = MIXED.model_copy(
        update={"model": facts, "layers": {"vrpr": [*range(1000)]}, "heads": {"0": {"tsa": [1]}}}
    )
    assert max(layer_chart(profile).get_size_inches()) <= 60


def test_points_have_their_names_and_errors() -> None:
    axes = scatter({"a": ((1.0, 0.1), (2.0, 0.2)), "true": ((3.0, 0.1), (4.0, 0.2))}, "drift", "motion", "true").axes[0]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["a", "true"]
    assert [bars.lines[0].get_xydata().tolist() for bars in axes.containers] == [[[1.0, 2.0]], [[3.0, 4.0]]]
    across, up = (bars.get_segments()[0].tolist() for bars in axes.containers[0].lines[2])
    assert across == [[pytest.approx(0.9), 2.0], [pytest.approx(1.1), 2.0]]
    assert up == [[1.0, pytest.approx(1.8)], [1.0, pytest.approx(2.2)]]
