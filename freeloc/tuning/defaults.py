"""What tuning tries unless it is told otherwise, as data: on all layers, on single layers, and in small steps.

Most are parts of `freeloc.plans.combined`, which are chosen on their own: positions, visible frames, balance,
temperature.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from freeloc.errors import FreelocError
from freeloc.plans.combined_settings import CombinedSettings, combined_label
from freeloc.profile.planning import policy_plans
from freeloc.profile.policies import resolve_policy
from freeloc.profile.schema import Profile
from freeloc.tuning.candidates import Candidate, profile_of, uniform

WINDOW: dict[str, Any] = {"attention": {"kind": "window"}}
WINDOW_AND_FIRST: dict[str, Any] = {"attention": {"kind": "window", "sink_frames": 1}}
TIERS: dict[str, Any] = {"attention": {"kind": "tsa"}}
CLIP: dict[str, Any] = {"positions": {"kind": "clip"}}
SMOOTH: dict[str, Any] = {"positions": {"kind": "smooth"}}

PLAIN: dict[str, dict[str, Any]] = {
    "vrpr": {},
    "clip": CLIP,
    "vrpr+tsa": TIERS,
    "balanced": {"balance": 0.25, "temperature": {"factor": 1.05}},
}
"""Methods that are parts of ``combined``, by name."""


def parts(settings: Mapping[str, Any]) -> Candidate:
    """The candidate with these parts of ``combined``; a method of its own where there is one.

    >>> parts({"balance": 0.5}), parts({}), parts(PLAIN["balanced"])
    (vrpr, balance 0.5, vrpr, balanced)
    """
    for name, own in PLAIN.items():
        if own == settings:
            return Candidate(name)
    return Candidate(combined_label(CombinedSettings.model_validate(settings)), "combined", settings)


def factor(value: float) -> dict[str, Any]:
    """A factor on all logits."""
    return {"temperature": {"factor": value}}


UNIFORM: tuple[Candidate, ...] = (
    Candidate("none"),
    Candidate("vrpr"),
    Candidate("clip"),
    Candidate("self-extend"),
    *map(
        parts,
        (
            SMOOTH,
            factor(1.05),
            factor(1.1),
            {"balance": 0.25},
            {"balance": 0.5},
            PLAIN["balanced"],
            {"balance": 0.25} | factor(1.1),
            {"balance": 0.25} | factor(1.2),
            {"balance": 0.5} | factor(1.1),
            CLIP | factor(1.05),
        ),
    ),
    Candidate("tsa"),
    Candidate("sliding-window"),
    Candidate("vrpr+tsa"),
    parts(WINDOW_AND_FIRST),
)
"""What is tried on all layers, the simplest first: among those that differ by nothing, the first is chosen."""

SIMPLER: tuple[Candidate, ...] = (Candidate("none"), Candidate("vrpr"), Candidate("clip"))
"""What is tried on one layer before changes of what all others have. It is chosen if nothing makes a difference."""

OTHER: tuple[Candidate, ...] = (Candidate("tsa"), Candidate("sliding-window"))
"""What is tried on one layer beside that: it leaves positions as they are."""

CHANGES: tuple[dict[str, Any], ...] = (CLIP, WINDOW, WINDOW_AND_FIRST, TIERS)
"""Parts that are tried on one layer in place of those that all others have."""

FEW = 3
"""How many of the best candidates on all layers are also tried on one."""

FACTORS = (0.95, 1.05, 1.1)
"""Factors on all logits that are tried on one layer, beside the factor that all others have."""


def on_one_layer(ranked: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """What is tried on one layer if all others have the first of these candidates, the best on all layers.

    These are simpler ones, the first few of the ranking, and changes of the best that has the parts of ``combined``.

    >>> on_one_layer([Candidate("tsa"), Candidate("vrpr"), Candidate("self-extend")])[3:7]
    (tsa, self-extend, vrpr, window, vrpr, window + first 1)

    Args:
        ranked: candidates on all layers, the best first.
    """
    found = [*SIMPLER, *ranked[:FEW]]
    settings = next((own for own in map(_parts_of, ranked) if own is not None), None)
    if settings is not None:
        own = settings.get("temperature", {}).get("factor", 1.0)
        found += [parts(settings | change) for change in CHANGES]
        found += [parts(_without_unit(settings | factor(round(own * by, 4)))) for by in FACTORS]
    return tuple(dict.fromkeys([*found, *OTHER]))


def _parts_of(candidate: Candidate) -> dict[str, Any] | None:
    """The parts of ``combined`` that a candidate is made of; None if it is another method."""
    if candidate.method == "combined":
        return dict(candidate.settings)
    return None if candidate.settings else PLAIN.get(candidate.method)


def _without_unit(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without a factor of 1, which changes nothing."""
    return {name: value for name, value in settings.items() if (name, value) != ("temperature", {"factor": 1.0})}


class Step(NamedTuple):
    """A number that tuning changes.

    Attributes:
        path: where it is in the settings of a method.
        factors: what it is multiplied by.
        usual: the path in the settings that says what None stands for: the trained length.
    """

    path: tuple[str, ...]
    factors: tuple[float, ...]
    none_is_trained: bool = False


STEPS = (
    Step(("temperature", "factor"), (0.976, 1.025)),
    Step(("factor",), (0.976, 1.025)),
    Step(("balance",), (0.5, 1.5)),
    Step(("attention", "frames"), (0.6, 1.5), none_is_trained=True),
    Step(("dense_frames",), (0.5, 2.0)),
    Step(("striped_frames",), (0.5, 2.0)),
)
"""The steps of the last stage."""


def neighbours(candidate: Candidate, base: Profile) -> dict[tuple[tuple[str, ...], float], Candidate]:
    """The same method with one number of `STEPS` changed by one step: by the path of the number and the factor.

    Settings that do not fit the method are left out.

    >>> from freeloc import load_profile
    >>> neighbours(Candidate("balanced"), load_profile("wan2.1"))[("temperature", "factor"), 1.025]
    vrpr, balance 0.25, x 1.076
    """
    own = _parts_of(candidate)
    start = candidate if own is None else Candidate("parts", "combined", own)
    resolved = resolve_policy(profile_of(base, uniform(start, base.model.layers)), start.name)
    settings = {} if resolved.settings is None else resolved.settings.model_dump(mode="json")
    found = {}
    for step in STEPS:
        value = _number(settings, step, base.model.trained_latent_frames)
        if value is None:
            continue
        for by in step.factors:
            new = max(1, round(value * by)) if isinstance(value, int) else round(value * by, 3)
            other = start.changed(step.path, new, _renamed(candidate.name, ".".join(step.path), new))
            if new != value and _fits(other, base):
                named = other if own is None else parts(_without_unit(dict(other.settings)))
                found[step.path, by] = named
    return found


def _number(settings: Any, step: Step, trained_frames: int) -> int | float | None:
    """The number at a path; None if there is none."""
    for name in step.path:
        if not isinstance(settings, dict) or name not in settings:
            return None
        settings = settings[name]
    if settings is None and step.none_is_trained:
        return trained_frames
    return settings if isinstance(settings, int | float) and not isinstance(settings, bool) else None


def _renamed(name: str, setting: str, value: float) -> str:
    """A name that says which setting differs.

    >>> _renamed("tsa dense_frames=4", "dense_frames", 2)
    'tsa dense_frames=2'
    """
    kept = [part for part in name.split(" ") if not part.startswith(f"{setting}=")]
    return " ".join([*kept, f"{setting}={value:g}"])


def _fits(candidate: Candidate, base: Profile) -> bool:
    """Whether a method accepts these settings."""
    try:
        profile = profile_of(base, uniform(candidate, base.model.layers))
        policy_plans(profile, candidate.name, 2 * base.model.trained_latent_frames)
    except FreelocError:
        return False
    return True
