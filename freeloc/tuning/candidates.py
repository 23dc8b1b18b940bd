"""Candidates: the policies that tuning chooses among, as data."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freeloc.errors import ProbeError
from freeloc.profile.files import with_choice
from freeloc.profile.policies import resolve_policy
from freeloc.profile.schema import PolicyPart, Profile
from freeloc.registry import registry


@dataclass(frozen=True)
class Candidate:
    """A policy that a layer may get: a registered method, perhaps with settings of its own.

    >>> Candidate("tsa")
    tsa
    >>> Candidate("narrow", "tsa", {"dense_frames": 2}).part.settings
    {'dense_frames': 2}

    Args:
        name: name of the policy in the profile and in the report. Without settings it is the method's.
        method: name of a registered method; by default `name`.
        settings: settings of the method that differ from its defaults under the profile.
    """

    name: str
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method or self.name)

    def __repr__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def text(self) -> str:
        """The candidate as JSON."""
        return json.dumps([self.name, self.method, self.settings], sort_keys=True)

    @property
    def part(self) -> PolicyPart:
        """The candidate as a profile defines it."""
        return PolicyPart(method=self.method, settings=dict(self.settings))

    def changed(self, path: Sequence[str], value: Any, name: str) -> "Candidate":
        """The same method with another value of one setting, which may be nested.

        >>> Candidate("a", "m", {"t": {"factor": 1.0}}).changed(("t", "factor"), 1.1, "b").settings
        {'t': {'factor': 1.1}}
        """
        settings = json.loads(json.dumps(dict(self.settings)))
        inner = settings
        for step in path[:-1]:
            inner = inner.setdefault(step, {})
        inner[path[-1]] = value
        return Candidate(name, self.method, settings)


Assignment = tuple[Candidate, ...]
"""The candidate of each layer."""


def candidates_of(also: Sequence[str | Candidate]) -> tuple[Candidate, ...]:
    """Candidates, given as such or by the names of registered methods.

    Raises:
        RegistryError: if there is no such method (the message suggests similar names).
        ProbeError: if one requires noise of its own, which a loss on real clips does not have.
    """
    found = tuple(one if isinstance(one, Candidate) else Candidate(one) for one in also)
    for one in found:
        if registry().methods.get(one.method).noise:
            raise ProbeError(
                f"expected methods that require no initial noise of their own, found '{one}': tuning measures "
                "losses on real clips with plain noise"
            )
    return found


def uniform(candidate: Candidate, layers: int) -> Assignment:
    """The same candidate on all layers."""
    return (candidate,) * layers


def with_layer(assignment: Assignment, layer: int, candidate: Candidate) -> Assignment:
    """The same with another candidate on one layer."""
    return (*assignment[:layer], candidate, *assignment[layer + 1 :])


def profile_of(base: Profile, assignment: Assignment, **changes: Any) -> Profile:
    """A profile with these policies on its layers.

    Args:
        base: the source of the model's facts, and of settings that candidates leave to it.
        assignment: a candidate for each layer.
        changes: other fields to replace.

    Raises:
        ProfileError: if there is no such method, or settings do not fit it.
    """
    distinct = dict.fromkeys(assignment)
    layers = {one.name: [layer for layer, own in enumerate(assignment) if own == one] for one in distinct}
    defined = {one.name: one.part for one in distinct if one.settings or one.name != one.method}
    return with_choice(base.model_copy(update={"policies": defined}), layers, None, "the choice", **changes)


def key_of(base: Profile, assignment: Assignment) -> str:
    """A digest of what an assignment does: method and all settings of each layer, 16 hex digits."""
    profile = profile_of(base, assignment)
    known: dict[str, str] = {}
    for one in dict.fromkeys(assignment):
        resolved = resolve_policy(profile, one.name)
        settings = {} if resolved.settings is None else resolved.settings.model_dump(mode="json")
        known[one.name] = json.dumps([resolved.method.name, settings], sort_keys=True)
    text = json.dumps([known[one.name] for one in assignment])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_data(assignment: Assignment) -> dict[str, Any]:
    """An assignment as JSON, for another process."""
    distinct = list(dict.fromkeys(assignment))
    return {
        "policies": [[one.name, one.method, dict(one.settings)] for one in distinct],
        "layers": [distinct.index(one) for one in assignment],
    }


def from_data(data: Mapping[str, Any]) -> Assignment:
    """The inverse of `as_data`.

    >>> two = (Candidate("vrpr"), Candidate("narrow", "tsa", {"dense_frames": 2}))
    >>> from_data(json.loads(json.dumps(as_data(two)))) == two
    True
    """
    distinct = [Candidate(*policy) for policy in data["policies"]]
    return tuple(distinct[index] for index in data["layers"])
