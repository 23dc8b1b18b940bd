"""Resolves the name of a policy to its method and settings, once per profile."""

import difflib
import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from freeloc.errors import ProfileError, RegistryError
from freeloc.plans.method import Method, Plans
from freeloc.profile.schema import Policy, Profile
from freeloc.registry import registry
from freeloc.untrusted import MOST_LINES, brief, printable, problems


@dataclass(frozen=True)
class Resolved:
    """The meaning of a policy's name under a profile: a method and its settings."""

    method: Method
    settings: BaseModel | None

    def plans(self, profile: Profile, layer: int, frames: int) -> Plans:
        """The method's plan for a layer, or one per head."""
        if self.settings is None:
            return self.method.plan(profile, layer, frames)
        return self.method.plan(profile, layer, frames, self.settings)


_RESOLVED: dict[int, dict[Policy, Resolved]] = {}
"""By id of the profile. It is not stored in the profile, since profiles are copied, compared and saved."""


def resolve_policy(profile: Profile, policy: Policy) -> Resolved:
    """The method and settings of a policy that the profile defines, or of a registered method.

    >>> from freeloc import load_profile
    >>> resolve_policy(load_profile("wan2.1"), "tsa").settings
    TsaSettings(dense_frames=8, striped_frames=24, stripe=0.125, sink_frames=1)

    Raises:
        ProfileError: if there is no such policy, or its settings do not fit its method.
    """
    if id(profile) not in _RESOLVED:
        _RESOLVED[id(profile)] = {}
        weakref.finalize(profile, _RESOLVED.pop, id(profile), None).atexit = False
    known = _RESOLVED[id(profile)]
    if policy not in known:
        known[policy] = _resolved(profile, policy)
    return known[policy]


def resolved_with(profile: Profile, method: Method) -> Resolved:
    """A method with its default settings under a profile.

    Raises:
        ProfileError: if it requires settings that have no default.
    """
    try:
        return Resolved(method, _settings(profile, method, {}))
    except ValidationError as error:
        raise ProfileError(
            f"method '{method.name}' requires settings:\n{problems(error, 'settings')}\ngive them in a profile: "
            f'"schema_version": 2, "policies": {{"NAME": {{"method": "{method.name}", "settings": {{...}}}}}}, and '
            '"layers": {"NAME": [...]}'
        ) from None


def noise_named(name: str) -> Method:
    """The registered method of this name, which has initial noise of its own.

    >>> noise_named("freenoise").name
    'freenoise'

    Raises:
        ProfileError: if there is none, or its noise is that of every other method.
    """
    try:
        method = registry().methods.get(name)
    except RegistryError as error:
        raise ProfileError(f"expected the name of a method with initial noise of its own: {error}") from error
    if method.noise is None:
        known = ", ".join(name for name, _, own in registry().methods.things() if own.noise is not None)
        raise ProfileError(
            f"expected the name of a method with initial noise of its own ({known}), found '{name}', which has none"
        )
    return method


def wrong_policies(profile: Profile) -> str:
    """The first ten problems of a profile's policies, one per line; empty if there are none."""
    found = [line for name in profile.policies for line in _wrong_definition(profile, name)]
    for name in profile.used_policies:
        if name not in profile.policies:
            try:
                resolve_policy(profile, name)
            except ProfileError as error:
                found += [f"  {line}" for line in f"layers or heads: {error}".split("\n")]
    if profile.noise is not None:
        try:
            noise_named(profile.noise)
        except ProfileError as error:
            found.append(f"  noise: {error}")
    longest = 200 if len(found) > 3 else 600
    lines = [line if len(line) <= longest else f"{line[:longest]}..." for line in found[:MOST_LINES]]
    more = [f"  and {len(found) - MOST_LINES} more"] if len(found) > MOST_LINES else []
    return "\n".join([*lines, *more])


def _wrong_definition(profile: Profile, name: Policy) -> Iterator[str]:
    method = profile.policies[name].method
    if name in registry().methods.owners and name != method:
        yield (
            f"  policies.{name}: expected a name that no other method has, found that of the method '{name}' for "
            f"'{method}': rename the policy"
        )
        return
    try:
        resolve_policy(profile, name)
    except ProfileError as error:
        yield from str(error).split("\n")


def _resolved(profile: Profile, policy: Policy) -> Resolved:
    if policy not in profile.policies:
        return resolved_with(profile, _method(profile, policy))
    place, own = f"policies.{printable(policy, 80)}", profile.policies[policy]
    try:
        method = registry().methods.get(own.method)
    except RegistryError as error:
        raise ProfileError(f"  {place}.method: {error}") from error
    try:
        return Resolved(method, _settings(profile, method, own.settings))
    except ValidationError as error:
        raise ProfileError(problems(error, f"{place}.settings")) from None
    except _UnknownSettingsError as error:
        raise ProfileError(f"  {place}.settings: {error}") from None
    except Exception as error:  # a plugin's schema may fail in any way on unexpected values
        cause = printable(f"{type(error).__name__}: {error}")
        raise ProfileError(f"  {place}.settings: the method '{method.name}' cannot read them: {cause}") from error


def _method(profile: Profile, policy: Policy) -> Method:
    """The registered method of a name that the profile does not define."""
    try:
        return registry().methods.get(policy)
    except RegistryError as error:
        near = difflib.get_close_matches(policy, profile.policies, n=1)
        hint = f", or the policy '{near[0]}'" if near else ""
        own = f"; policies of the profile: {printable(', '.join(profile.policies), 200)}" if profile.policies else ""
        raise ProfileError(f"expected the name of a policy or a method{hint}: {error}{own}") from error


class _UnknownSettingsError(ValueError):
    """The method does not have such a setting."""


def _settings(profile: Profile, method: Method, given: Mapping[str, Any]) -> BaseModel | None:
    """An instance of the method's schema: the given settings, and for all others the defaults under this profile."""
    schema = method.settings
    fields = schema.model_fields if schema else {}
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    unknown = [name for name in given if name not in known]
    if unknown and (schema is None or schema.model_config.get("extra") != "allow"):
        allowed = f"one of {', '.join(fields)}" if fields else f"none: the method '{method.name}' has no settings"
        raise _UnknownSettingsError(f"expected {allowed}, found {brief(unknown[0])}")
    if schema is None:
        return None
    defaults = method.defaults(profile).model_dump(mode="json") if method.defaults else {}
    return schema.model_validate_json(json.dumps(defaults | dict(given)))
