"""freeloc probe: measure a diffusers model, and write a profile with the measurements behind it."""

import argparse
import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.cli.common import Commands, errors_as, positive, problems
from freeloc.discovery import transformers_of
from freeloc.errors import FreelocError, ProbeError
from freeloc.files import content_of
from freeloc.metrics.video import read_video
from freeloc.probing import Depth, encode, find_depth, probe
from freeloc.probing.depths.lookup import installed_depths
from freeloc.profile.files import load_profile
from freeloc.profile.matching import default_profile, fitting_profile
from freeloc.profile.schema import Profile
from freeloc.registry import registry
from freeloc.untrusted import parsed, printable

OPTIONS = {"clips": "--clips", "scorers": "--scorer", "policies": "--policy"}
"""Options of the command line, by the setting of a depth that they set."""

LARGEST_PROMPTS = 10_000_000
"""Largest size of a file of prompts, in bytes."""


def run(arguments: argparse.Namespace) -> None:
    """Probe, print the measurements, and write the profile and its measurements."""
    _check(arguments)
    prompts, more = _prompts(arguments), _pipeline_arguments(arguments)
    given = load_profile(arguments.profile) if arguments.profile else None
    pipe = _pipeline(arguments)
    profile = given or _profile(arguments, pipe)
    depth = _depth(arguments, pipe)

    def generate(prompt: str) -> Any:
        generator = torch.Generator().manual_seed(arguments.seed)
        kind = "np" if depth.needs_video else "latent"
        with errors_as(f"{type(pipe).__name__} cannot generate"):
            return pipe(prompt=prompt, generator=generator, output_type=kind, **more)

    folder = arguments.folder or arguments.output.with_suffix("")
    found = probe(
        pipe,
        generate,
        depth,
        prompts=prompts,
        profile=profile,
        folder=folder,
        run_settings={"model": arguments.model, "dtype": arguments.dtype, "arguments": more},
        seed=arguments.seed,
    )
    print(found.text(found.to_profile(arguments.output, heads=arguments.heads)))
    print(f"\nwritten: {arguments.output} and {arguments.output.with_suffix('.safetensors')}; parts: {folder}")


def depths(arguments: argparse.Namespace) -> int:
    """List the depths, in order of their rank."""
    known = registry().depths.things()
    for name, distribution, depth in sorted(known, key=lambda thing: getattr(thing[2], "rank", 0)):
        print(f"{name:20} {distribution:20} {(inspect.getdoc(depth) or '').partition(chr(10))[0]}")
    return problems()


def _check(arguments: argparse.Namespace) -> None:
    """Check the combination of options, before anything large is loaded."""
    output, depth = arguments.output, find_depth(arguments.depth)
    if output.suffix != ".json" or output.is_dir():
        raise ProbeError(f"expected --output to name a .json file, found {output}")
    if arguments.heads and not depth.by_heads:
        raise ProbeError(f"expected --heads without --depth {depth.name}, which does not measure single heads")
    for setting, option in OPTIONS.items():
        if _given(arguments)[setting] and setting not in _settings_of(depth):
            fitting = [own.name for own in installed_depths(registry().depths.owners) if setting in _settings_of(own)]
            raise ProbeError(
                f"expected {option} with --depth {' or '.join(fitting)}: depth {depth.name} has no {setting}"
            )
    if "clips" not in _settings_of(depth):
        return
    if not arguments.clips:
        raise ProbeError(f"expected --clips VIDEO VIDEO ... with --depth {depth.name}: real videos as long as --frames")
    if not (arguments.frames and arguments.height and arguments.width):
        raise ProbeError(
            f"expected --frames, --height and --width with --depth {depth.name}: clips are cropped to that size"
        )


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of a depth from the command line."""
    return {"clips": arguments.clips, "scorers": arguments.scorer, "policies": arguments.policy}


def _settings_of(depth: Depth) -> set[str]:
    """Names of the settings that a depth has."""
    return {field.name for field in dataclasses.fields(depth)} if dataclasses.is_dataclass(depth) else set()


def _pipeline(arguments: argparse.Namespace) -> Any:
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise FreelocError(f'freeloc probe requires diffusers ({error}): pip install "freeloc[diffusers]"') from error
    is_old = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 40)
    dtype = {"torch_dtype" if is_old else "dtype": getattr(torch, arguments.dtype)}
    with errors_as(f"cannot load the model {arguments.model}"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(arguments.model, **dtype)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(arguments.device)  # not to the dtype: models keep some of their weights in float32


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of the command line, and of a file with one per line."""
    prompts = list(arguments.prompt)
    if arguments.prompts:
        try:
            lines = content_of(arguments.prompts, LARGEST_PROMPTS).decode("utf-8").splitlines()
        except ValueError as error:
            raise ProbeError(f"cannot read the prompts {printable(str(arguments.prompts))}: {error}") from error
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ProbeError("expected at least one prompt: give --prompt TEXT or --prompts FILE")
    return prompts


def _depth(arguments: argparse.Namespace, pipe: Any) -> Depth:
    """The depth with the settings of the command line."""
    depth = find_depth(arguments.depth)
    settings = {name: value for name, value in _given(arguments).items() if value}
    if arguments.clips:
        settings["clips"] = [_clip(arguments, pipe, path) for path in arguments.clips]
    if arguments.heads and "heads" in _settings_of(depth):
        settings["heads"] = True
    return dataclasses.replace(depth, **settings) if settings else depth  # type: ignore[type-var]  # reason: see _check


def _clip(arguments: argparse.Namespace, pipe: Any, path: Path) -> Tensor:
    """Latents of a video file, cropped to the length and size of the run."""
    video = read_video(path)
    if len(video) < arguments.frames:
        raise ProbeError(f"{printable(str(path))}: expected at least {arguments.frames} frames, found {len(video)}")
    axes = transformers_of(pipe)[0][1].grid.axes.split()
    order = " ".join(axes[1:]) if set(axes) == {"b", "c", "f", "h", "w"} else "c f h w"
    video = fitted(video[: arguments.frames], arguments.height, arguments.width)
    with errors_as(f"the VAE cannot encode {printable(str(path))}"):
        return encode(pipe.vae, video, order).float().cpu()


def fitted(video: Tensor, height: int, width: int) -> Tensor:
    """Resize a video (frames, height, width, 3) to cover a size, and crop its centre.

    >>> fitted(torch.rand(5, 30, 90, 3), height=16, width=16).shape
    torch.Size([5, 16, 16, 3])
    """
    scale = max(height / video.shape[1], width / video.shape[2])
    size = max(height, round(video.shape[1] * scale)), max(width, round(video.shape[2] * scale))
    large = F.interpolate(video.movedim(-1, 1), size, mode="bilinear", antialias=True).clamp(0, 1).movedim(1, -1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, top : top + height, left : left + width]


def _profile(arguments: argparse.Namespace, pipe: Any) -> Profile:
    """The profile if the command line names none."""
    if arguments.trained_latent_frames:
        return default_profile(pipe, trained_latent_frames=arguments.trained_latent_frames)
    transformer, adapter = transformers_of(pipe)[0]
    try:
        return fitting_profile(transformer, adapter, any_layers=True)
    except FreelocError as error:
        raise ProbeError(f"{error}. Give --trained-latent-frames, or --profile") from error


def _pipeline_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        more = parsed(arguments.arguments)
    except (ValueError, RecursionError) as error:
        raise ProbeError(
            f"expected --arguments to be a JSON object, found {arguments.arguments!r} ({error})"
        ) from error
    if not isinstance(more, dict):
        raise ProbeError(f"expected --arguments to be a JSON object, found {arguments.arguments!r}")
    given = {"num_frames": arguments.frames, "height": arguments.height, "width": arguments.width}
    given |= {"num_inference_steps": arguments.steps}
    return {name: value for name, value in given.items() if value is not None} | more


def add(commands: Commands) -> None:
    """Add this command."""
    command = commands.add_parser("probe", help="measure how sensitive each layer of a diffusers model is")
    command.add_argument("model", help="folder of a diffusers pipeline, or its repository")
    command.add_argument("--output", type=Path, required=True, help="profile to write, a .json file")
    command.add_argument("--depth", default="local", help="how to probe (freeloc depths); by default local")
    command.add_argument("--prompt", action="append", default=[], help="prompt of a video; may be repeated")
    command.add_argument("--prompts", type=Path, help="file with one prompt per line")
    command.add_argument("--frames", type=positive, help="video frames; more than the trained length")
    command.add_argument("--height", type=positive, help="in pixels")
    command.add_argument("--width", type=positive, help="in pixels")
    command.add_argument("--steps", type=positive, help="denoising steps")
    command.add_argument("--arguments", default="{}", help="more arguments of the pipeline, a JSON object")
    command.add_argument("--clips", type=Path, nargs="+", metavar="VIDEO", help="real videos, for --depth loss")
    command.add_argument(
        "--policy", action="append", help="a policy to choose among, for --depth loss; may be repeated"
    )
    command.add_argument(
        "--scorer", action="append", help="a scorer (freeloc scorers), for --depth video; may be repeated"
    )
    command.add_argument("--heads", action="store_true", help="choose for each head; not with --depth video")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--profile", help="profile with the trained length and settings; by default one that fits")
    source.add_argument("--trained-latent-frames", type=positive, help="instead of a profile, for a model without one")
    command.add_argument(
        "--folder", type=Path, help="folder of saved measurements, from which an interrupted probe continues"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    command.set_defaults(run=run)

    command = commands.add_parser("depths", help="list the ways to probe a model")
    command.set_defaults(run=depths)
