"""freeloc profiles: list, show, validate, diff, plot."""

import argparse
import json
from collections.abc import Iterator

from freeloc.cli import profile_pictures
from freeloc.cli.common import Commands, problems
from freeloc.errors import ProfileError
from freeloc.plans.tsa import derive_settings
from freeloc.probing import Sensitivity
from freeloc.profile.diff import differences
from freeloc.profile.files import load_profile, measurements_path
from freeloc.profile.policies import resolve_policy
from freeloc.profile.schema import Profile
from freeloc.registry import registry
from freeloc.untrusted import printable

VERSION_2 = """version 2 supports any method (freeloc methods) for layers and heads, with its own settings:
"schema_version": 2, "policies": {"wide": {"method": "tsa", "settings": {"stripe": 0.2}}}, "layers": {"wide": [0, 1]}"""
"""How to write version 2, shown for profiles of version 1."""


def profiles(arguments: argparse.Namespace) -> int:
    """List the profiles."""
    broken = []
    for name, distribution, path in registry().profiles.things():
        try:
            profile = load_profile(path)
        except ProfileError as error:
            broken.append(f"profile '{name}' of {distribution}: {error}")
            continue
        model = profile.model
        print(
            f"{name:20} {distribution:20} {profile.provenance.kind:10} {model.layers:3} layers, {model.heads:2} heads "
            f"of {model.head_dim:3}, {model.trained_latent_frames} latent frames: {model.name}"
        )
    return problems(broken)


def show(arguments: argparse.Namespace) -> None:
    """Print one profile: the policies of layers, and their provenance."""
    print("\n".join(_described(load_profile(arguments.profile))))


def _described(profile: Profile) -> Iterator[str]:
    model, provenance = profile.model, profile.provenance
    yield f"{model.name}: {provenance.kind}"
    yield from (printable(text, None) for text in (provenance.source, provenance.notes) if text)
    yield (
        f"{'model':10} {profile.adapter}, {model.layers} layers, {model.heads} heads of {model.head_dim}, trained on "
        f"{model.trained_latent_frames} latent frames"
    )
    for name, defined in profile.policies.items():
        yield f"{'policy':10} {name}: {defined.method}{_settings(profile, name)}"
    for policy, layers in profile.layers.items():
        yield f"{policy:10} {len(layers):3} layers: {' '.join(map(str, layers))}"
    for layer, groups in profile.heads.items():
        own = "; ".join(f"{policy}: {' '.join(map(str, heads))}" for policy, heads in groups.items())
        yield f"{'heads':10} of layer {layer}, other than the layer: {own}"
    lengths = ", ".join(profile.vrpr.lengths) or "none, all derived"
    yield f"{'VRPR':10} flooring by {profile.vrpr.flooring}; lengths with settings of their own: {lengths}"
    tsa = profile.tsa or derive_settings(model.trained_latent_frames)
    yield f"{'TSA':10} {tsa}{'' if profile.tsa else ', derived'}"
    if profile.noise:
        yield f"{'noise':10} initial noise of {profile.noise}"
    if profile.evidence:
        yield f"{'evidence':10} sha256 {profile.evidence.sha256[:12]}..., {printable(profile.evidence.rule, None)}"


def _settings(profile: Profile, policy: str) -> str:
    """The settings of a policy: the method's own label, or what the profile gives."""
    resolved, given = resolve_policy(profile, policy), profile.policies[policy].settings
    if resolved.method.label is not None:
        return f": {printable(resolved.method.label(resolved.settings), None)}"
    words = ", ".join(f"{field}={json.dumps(value)}" for field, value in given.items())
    return f", with {printable(words, None)}" if words else ""


def validate(arguments: argparse.Namespace) -> None:
    """Check profile files, and the measurements beside them. The first wrong one raises an error."""
    oldest = False
    for path in arguments.profiles:
        text, profile = "it has no measurements", load_profile(path)
        oldest = oldest or profile.schema_version == 1
        if profile.evidence:
            found = measurements_path(path)  # also compares the digest
            depths = printable(", ".join(Sensitivity.load(found).depths)) if found else ""
            text = f"its measurements are beside it: {depths}" if found else "its measurements are not beside it"
        print(f"{path}: a valid profile of schema version {profile.schema_version}; {text}")
    if oldest:
        print(VERSION_2)


def diff(arguments: argparse.Namespace) -> int:
    """Print the differences; return 1 if there are any, as diff does."""
    lines = differences(load_profile(arguments.first), load_profile(arguments.second))
    print("\n".join(lines) or "no difference")
    return 1 if lines else 0


def add(commands: Commands) -> None:
    """Add these commands."""
    group = commands.add_parser("profiles", help="list, show, validate, compare or draw profiles")
    group.set_defaults(run=profiles)
    actions = group.add_subparsers(metavar="ACTION")
    actions.add_parser("list", help="list installed profiles (the default)").set_defaults(run=profiles)
    command = actions.add_parser("show", help="print the policies of layers, and their provenance")
    command.add_argument("profile", help="name, path or repository")
    command.set_defaults(run=show)
    command = actions.add_parser("validate", help="check profile files")
    command.add_argument("profiles", nargs="+", help="names, paths or repositories")
    command.set_defaults(run=validate)
    command = actions.add_parser("diff", help="print the differences of two; exit status 1 if there are any")
    command.add_argument("first", help="name, path or repository")
    command.add_argument("second", help="name, path or repository")
    command.set_defaults(run=diff)
    profile_pictures.add(actions)
