"""freeloc profiles plot: pictures of a profile, of its plans, and of the measurements behind it."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from freeloc.cli.common import Commands, positive
from freeloc.errors import ProfileError
from freeloc.pictures import layer_chart, plan_tables, sensitivity_map, write
from freeloc.plans.frame_plan import FramePlan
from freeloc.probing import Sensitivity
from freeloc.probing.depths.lookup import installed_depths
from freeloc.profile.files import load_profile, measurements_path
from freeloc.profile.planning import policy_plans
from freeloc.profile.schema import Policy, Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PICTURES = 100
"""Largest number of pictures. Untrusted measurements can hold thousands of tables."""

MOST_DRAWN = 1000
"""Largest number of layers, heads and latent frames to draw. An untrusted profile could fill all memory."""


def plot(arguments: argparse.Namespace) -> None:
    """Draw a profile, the plan of each policy in it, and its measurements: each depth, and each table."""
    profile, folder = load_profile(arguments.profile), arguments.output
    frames = arguments.frames or 4 * (profile.model.trained_latent_frames - 1) + 1
    _require_drawable(profile, frames)
    measured = _measurements(arguments)
    depth = arguments.depth or _chosen_by(profile, measured)
    pictures: dict[str, Callable[[], Figure]] = {"layers": partial(layer_chart, profile, measured, depth)}
    for policy in profile.used_policies:
        if policy != "none":
            pictures[file_name(f"plan-{policy}")] = partial(_plan, profile, policy, frames)
    if measured:
        pictures |= _of_measurements(measured)
    if len(pictures) > MOST_PICTURES:
        raise ProfileError(
            f"expected at most {MOST_PICTURES} pictures, of policies and of tables, found {len(pictures)}"
        )
    for name, draw in pictures.items():  # one after the other, since figures are large
        write(draw(), folder / f"{name}.png")
        print(folder / f"{name}.png")


def _chosen_by(profile: Profile, measured: Sensitivity | None) -> str | None:
    """The depth that the profile was chosen by, if it is known and was measured."""
    depth = profile.evidence.rule.partition(":")[0] if profile.evidence else ""
    return depth if measured and depth in measured.depths else None


def _require_drawable(profile: Profile, frames: int) -> None:
    counts = {"layers": profile.model.layers, "heads": profile.model.heads}
    counts["latent frames (--frames, by default 4 trained lengths)"] = frames
    for name, count in counts.items():
        if count > MOST_DRAWN:
            raise ProfileError(f"expected at most {MOST_DRAWN} {name} to draw, found {count}")


def _of_measurements(measured: Sensitivity) -> "dict[str, Callable[[], Figure]]":
    """What draws the pictures of measurements, by name."""
    for table in measured.tables.values():
        for axis in {"layers", "heads", "steps"} & set(table.axes):
            if (count := len(table.axes[axis])) > MOST_DRAWN:
                raise ProfileError(f"expected measurements of at most {MOST_DRAWN} {axis} to draw, found {count}")
    drawn: dict[str, Callable[[], Figure]] = {
        file_name(f"depth-{depth.name}"): partial(depth.picture, measured)
        for depth in installed_depths(measured.depths)
    }
    for name, table in measured.tables.items():
        if "layers" in table.axes and {"heads", "steps"} & set(table.axes) and not name.endswith("error"):
            drawn[file_name(name)] = partial(sensitivity_map, measured, name)
    return drawn


def file_name(table: str) -> str:
    """A safe file name for the picture of an untrusted table name.

    >>> file_name("local.head change"), file_name("../../escaped/local"), file_name("/tmp/absolute")
    ('local.head-change', '..-..-escaped-local', '-tmp-absolute')
    """
    return re.sub(r"[^\w.+]", "-", table)


def _plan(profile: Profile, policy: Policy, frames: int) -> "Figure":
    """The plan of a policy on the first layer that has it; if its heads differ, of the first one."""
    layer = next(layer for layer in range(profile.model.layers) if policy in profile.head_policies(layer))
    plans, where = policy_plans(profile, policy, frames, layer), ""
    if not isinstance(plans, FramePlan):
        head = profile.head_policies(layer).index(policy)
        plans, where = plans[head], f" of layer {layer}, head {head}"
    return plan_tables(plans, f"{profile.model.name}: {policy}{where}, {frames} latent frames")


def _measurements(arguments: argparse.Namespace) -> Sensitivity | None:
    """The given measurements, or those beside the profile."""
    if arguments.measurements:
        return Sensitivity.load(arguments.measurements)
    if path := measurements_path(arguments.profile):
        return Sensitivity.load(path)
    if arguments.depth:
        raise ProfileError(
            "expected measurements with --depth, found none beside the profile: give --measurements FILE"
        )
    return None


def add(actions: Commands) -> None:
    """Add this action."""
    command = actions.add_parser("plot", help="draw the policies of layers, plans and measurements")
    command.add_argument("profile", help="name, path or repository")
    command.add_argument("--output", type=Path, required=True, help="folder to write PNG files to")
    command.add_argument("--measurements", type=Path, help="a .safetensors file; by default the one beside the profile")
    command.add_argument("--depth", help="depth to show; by default the one that chose, or of the highest rank")
    command.add_argument("--frames", type=positive, help="latent frames of the plans; by default 4 trained lengths")
    command.set_defaults(run=plot)
