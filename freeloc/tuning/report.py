"""The report of a tuning, in Markdown: what was found, with the numbers behind each sentence."""

import math
from collections.abc import Sequence

from freeloc.probing.facts import ProbeFacts
from freeloc.tuning.held_out import HARM, WINS
from freeloc.tuning.own_clips import SAFE
from freeloc.tuning.racing import Paired
from freeloc.tuning.samples import LIMITS, MEASURES, Limit
from freeloc.tuning.search import GAIN, Step
from freeloc.tuning.session import Session
from freeloc.tuning.shipping import SHORT
from freeloc.untrusted import printable

SMALLEST = 1e-9
"""Replaces a loss of 0 in a denominator."""


def report_of(session: Session, facts: ProbeFacts) -> str:
    """The whole report. Its first part, before the first heading of a section, is a summary."""
    parts = [
        _summary(session),
        "## The choice\n\n![the policy of each layer](choice.png)",
        _all_layers(session),
        _single_layers(session),
        _changes(session),
        _other_clips(session),
        _videos(session),
        _how(session, facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def percent(apart: Paired) -> str:
    """A difference in percent of the loss that it is compared with, with its standard error.

    >>> percent(Paired(mean=-0.002, error=0.0005, clips=8, wins=7, loss=0.1))
    '-2.00 % ± 0.50'
    """
    if not apart.clips:
        return "not measured"
    loss = max(apart.loss, SMALLEST)
    error = "" if math.isnan(apart.error) else f" ± {100 * apart.error / loss:.2f}"
    return f"{100 * apart.mean / loss:+.2f} %{error}"


def _summary(session: Session) -> str:
    search, model = session.search, session.runner.profile.model
    groups: dict[str, list[int]] = {}
    for layer, one in enumerate(session.chosen):
        groups.setdefault(one.name, []).append(layer)
    rows = [[name, "all" if len(groups) == 1 else ", ".join(map(str, layers))] for name, layers in groups.items()]
    lines = [f"# Tuned: {printable(model.name)}", table(["policy", "layers"], rows)]
    ours = next((one for one in session.held_out if one.assignment == session.chosen), None)
    if ours is not None and ours.name != search.base.name:
        score = ours.score
        lines.append(
            f"On {score.clips} clips that nothing was chosen on, its loss differs from that of "
            f"'{search.base.name}' on all layers by {percent(score)} (whole frames {percent(ours.whole)}, "
            f"moving and detailed places {percent(ours.places)}), and is lower on {score.wins} of them."
        )
    vrpr = next((one for one in session.held_out if one.name == SAFE), None)
    if ours is not None and vrpr is not None and vrpr is not ours and search.base.name != SAFE:
        lines.append(f"There '{SAFE}' on all layers differs from '{search.base.name}' by {percent(vrpr.score)}.")
    if session.is_own:
        lines.append(
            f"The clips are samples of the model itself, corrected by '{SAFE}'. A judge likes what made its "
            f"examples: read the comparisons with '{SAFE}' as biased in its favour, and tune on real clips "
            "where you can."
        )
    if not session.shipping.measured:
        lines.append("No videos were sampled: a low loss does not exclude that videos freeze, drift or loop.")
    return "\n\n".join([*lines, *session.notes])


def _all_layers(session: Session) -> str:
    steps = [step for step in session.search.steps if step.stage == "uniform"]
    rows = [
        [step.what.removesuffix(" on all layers"), percent(step.apart), str(step.apart.clips), step.why]
        for step in steps
    ]
    head = ["policy on all layers", f"loss against '{session.search.base.name}'", "clips", "outcome"]
    return f"## Candidates on all layers\n\n{table(head, rows)}\n\n![losses of candidates](all-layers.png)"


def _single_layers(session: Session) -> str:
    search, layers = session.search, session.runner.profile.model.layers
    steps = {step.what: step for step in search.steps if step.stage == "single layers"}
    names = [one.name for one in search.tried if one != search.base]
    rows = []
    for layer in range(layers):
        own = [steps.get(f"{name} on layer {layer}") for name in names]
        rows.append([str(layer), *("" if step is None else _cell(step) for step in own)])
    if not steps:
        return ""
    said = (
        f"All other layers have '{search.base.name}', and the loss is compared with having it on all. A star "
        f"marks what is lower by more than {GAIN:g} standard errors; = marks no difference at all."
    )
    picture = "![gains on single layers](one-layer.png)"
    return f"## Another policy on one layer\n\n{said}\n\n{table(['layer', *names], rows)}\n\n{picture}"


def _cell(step: Step) -> str:
    mark = "\\*" if step.kept else " =" if step.apart.is_nothing() else ""
    return f"{percent(step.apart)}{mark}"


def _changes(session: Session) -> str:
    steps = [step for step in session.search.steps if step.stage in ("together", "settings")]
    if not steps:
        return "## Changes together\n\nNo change on one layer was better beyond doubt, so none was combined."
    rows = [[step.what, percent(step.apart), str(step.apart.clips), step.why] for step in steps]
    said = "Each change was measured on top of those before it that were kept."
    return f"## Changes together\n\n{said}\n\n{table(['change', 'loss', 'clips', 'outcome'], rows)}"


def _other_clips(session: Session) -> str:
    rows = [
        [
            one.name,
            percent(one.score),
            percent(one.whole),
            percent(one.places),
            f"{one.score.wins} of {one.score.clips}",
        ]
        for one in session.held_out
    ]
    base = session.search.base.name
    head = [f"against '{base}' on all layers", "loss", "whole frames", "moving and detailed places", "lower on"]
    rule = (
        f"A choice that differs between layers must be better than '{base}' by more than {WINS:g} standard "
        f"error, and not worse on whole frames by more than {HARM:g}; both count more on few clips."
    )
    return f"## The check on other clips\n\n{table(head, rows)}\n\n{rule}\n\n![losses on other clips](other-clips.png)"


def _videos(session: Session) -> str:
    measured = session.shipping.measured
    if not measured:
        return ""
    rows = []
    for name, values in measured.items():
        means = [values[:, index][values[:, index].isfinite()] for index in range(len(MEASURES))]
        rows.append([name, *(f"{float(own.mean()):.3g}" if len(own) else "none" for own in means)])
    limits = ["limit", *(", ".join(_said(one) for one in LIMITS if one.measure == name) for name in MEASURES)]
    count = len(next(iter(measured.values())))
    said = (
        f"Means over {count} prompt{'s' if count > 1 else ''}. Limits are relative to '{SHORT}', uncorrected, of the "
        "trained length, with the same prompts; a limit is broken by more than one standard error. '1 x' is the "
        "value of the short samples."
    )
    head = ["setting", *MEASURES]
    return f"## Sampled videos\n\n{said}\n\n{table(head, [*rows, limits])}\n\n![frames of sampled videos](videos.png)"


def _said(limit: Limit) -> str:
    plus = f" + {limit.plus:g}" if limit.plus else ""
    return f"{'at most' if limit.most else 'at least'} {limit.factor:g} x{plus}"


def _how(session: Session, facts: ProbeFacts) -> str:
    search, clock = session.search, session.work.clock
    tuning = len({unit.clip for unit in search.units})
    losses, model = search.losses, session.runner.profile.model
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    lines = [
        f"- clips: {len(session.runner.clips)}, {tuning} to choose on and the others to check on; seed {facts.seed}",
        f"- latent frames: {', '.join(map(str, session.frames))}; trained on {model.trained_latent_frames}",
        f"- noise levels: {', '.join(f'{level:g}' for level in session.levels)}",
        f"- loss: {1 - losses.weight:g} x whole frames + {losses.weight:g} x moving and detailed places",
        f"- time: {clock.spent() / 60:.1f} of {clock.budget / 60:g} minutes, {session.work.processes} process"
        f"{'es' if session.work.processes > 1 else ''}; {losses.count} losses",
        f"- weights: {facts.fingerprint[:12]}; versions: {versions}",
        f"- command: `{printable(facts.command)}`",
        *(f"- {note}" for note in search.notes),
    ]
    return "## How it was measured\n\n" + "\n".join(lines)
