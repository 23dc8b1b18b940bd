"""freeloc profiles plot: pictures of a profile, of its plans, and of the measurements it rests on."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from freeloc.cli.common import Commands, positive
from freeloc.errors import ProfileError
from freeloc.pictures import layer_chart, plan_tables, sensitivity_map, write
from freeloc.plans.frame_plan import FramePlan
from freeloc.probing import Sensitivity
from freeloc.profile.files import load_profile, measurements_path
from freeloc.profile.planning import policy_plans
from freeloc.profile.schema import Policy, Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DRAWN = 1000
"""Layers, heads and latent frames, at most: what an untrusted profile says could fill any memory."""


def plot(arguments: argparse.Namespace) -> None:
    """Draw a profile, the plan of each policy in it, and every table of its measurements."""
    profile, folder = load_profile(arguments.profile), arguments.output
    frames = arguments.frames or 4 * (profile.model.trained_latent_frames - 1) + 1
    _require_drawable(profile, frames)
    measured = _measurements(arguments)
    pictures = {"layers": layer_chart(profile, measured, arguments.depth or _chosen_by(profile, measured))}
    for policy in profile.used_policies:
        if policy != "none":
            pictures[file_name(f"plan-{policy}")] = _plan(profile, policy, frames)
    if measured:
        for name, table in measured.tables.items():
            if "layers" in table.axes and {"heads", "steps"} & set(table.axes) and not name.endswith("error"):
                pictures[file_name(name)] = sensitivity_map(measured, name)
    for name, figure in pictures.items():
        write(figure, folder / f"{name}.png")
        print(folder / f"{name}.png")


def _chosen_by(profile: Profile, measured: Sensitivity | None) -> str | None:
    """The depth that the profile's choice rests on, if it says one that was measured."""
    depth = profile.evidence.rule.partition(":")[0] if profile.evidence else ""
    return depth if measured and depth in measured.depths else None


def _require_drawable(profile: Profile, frames: int) -> None:
    counts = {"layers": profile.model.layers, "heads": profile.model.heads}
    counts["latent frames (--frames, by default 4 trained lengths)"] = frames
    for name, count in counts.items():
        if count > MOST_DRAWN:
            raise ProfileError(f"expected at most {MOST_DRAWN} {name} to draw, found {count}")


def file_name(table: str) -> str:
    """What the picture of an untrusted table is called: it stays in the folder.

    >>> file_name("local.head change"), file_name("../../escaped/local"), file_name("/tmp/absolute")
    ('local.head-change', '..-..-escaped-local', '-tmp-absolute')
    """
    return re.sub(r"[^\w.+]", "-", table)


def _plan(profile: Profile, policy: Policy, frames: int) -> "Figure":
    """The plan of a policy on the first layer that has it; of one head where they differ."""
    layer = next(layer for layer in range(profile.model.layers) if policy in profile.head_policies(layer))
    plans, where = policy_plans(profile, policy, frames, layer), ""
    if not isinstance(plans, FramePlan):
        head = profile.head_policies(layer).index(policy)
        plans, where = plans[head], f" of layer {layer}, head {head}"
    return plan_tables(plans, f"{profile.model.name}: {policy}{where}, {frames} latent frames")


def _measurements(arguments: argparse.Namespace) -> Sensitivity | None:
    """What was given, or what lies beside the profile."""
    if arguments.measurements:
        return Sensitivity.load(arguments.measurements)
    if path := measurements_path(arguments.profile):
        return Sensitivity.load(path)
    if arguments.depth:
        raise ProfileError("expected measurements with --depth: none are beside the profile, give --measurements FILE")
    return None


def add(actions: Commands) -> None:
    """Add this action."""
    command = actions.add_parser("plot", help="pictures of what each layer gets, of plans and of measurements")
    command.add_argument("profile", help="name, path or repository")
    command.add_argument("--output", type=Path, required=True, help="folder to write PNG files to")
    command.add_argument("--measurements", type=Path, help="a .safetensors file; by default the one beside the profile")
    command.add_argument("--depth", help="local, output, loss or video; by default the one that chose, or the deepest")
    command.add_argument("--frames", type=positive, help="latent frames of the plans; by default 4 trained lengths")
    command.set_defaults(run=plot)
