"""freeloc profiles: list, show, validate."""

import argparse

from freeloc.cli.common import Commands, problems
from freeloc.errors import ProfileError
from freeloc.profile_files import load_profile
from freeloc.registry import registry


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
    """Print one profile: what each layer gets, and where that comes from."""
    profile = load_profile(arguments.profile)
    print(f"{profile.model.name}: {profile.provenance.kind}\n{profile.provenance.source}\n{profile.provenance.notes}")
    for policy, layers in profile.layers.items():
        print(f"{policy:10} {len(layers):3} layers: {' '.join(str(layer) for layer in layers)}")


def validate(arguments: argparse.Namespace) -> None:
    """Check profile files; the first that is wrong is an error."""
    for path in arguments.profiles:
        load_profile(path)
        print(f"{path}: a valid profile")


def add(commands: Commands) -> None:
    """Add these commands."""
    group = commands.add_parser("profiles", help="list, show or validate profiles")
    group.set_defaults(run=profiles)
    actions = group.add_subparsers(metavar="ACTION")
    actions.add_parser("list", help="all installed ones (the default)").set_defaults(run=profiles)
    command = actions.add_parser("show", help="what each layer gets, and where that comes from")
    command.add_argument("profile", help="name or path")
    command.set_defaults(run=show)
    command = actions.add_parser("validate", help="check files")
    command.add_argument("profiles", nargs="+", help="names or paths")
    command.set_defaults(run=validate)
