"""Profiles: which correction each layer of a model gets, as a JSON file that a person can read in a pull request."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from torch import nn
from typing_extensions import Self

from freeloc.adapter import Adapter, ModelShape
from freeloc.errors import AdapterError, ProfileError, RegistryError
from freeloc.registry import registry, transformers_of
from freeloc.tsa import TsaSettings
from freeloc.vrpr import Flooring, VrprSettings

SCHEMA_VERSION = 1

Policy = Literal["none", "vrpr", "tsa", "vrpr+tsa"]
POLICIES: tuple[Policy, ...] = ("none", "vrpr", "tsa", "vrpr+tsa")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelFacts(_Part):
    """The model that a profile is for.

    Attributes:
        name: for people, such as a checkpoint's name.
        layers: number of transformer layers.
        heads: attention heads per layer.
        head_dim: channels per head.
        trained_latent_frames: length of the clips that the model was trained on, in latent frames.
    """

    name: str
    layers: PositiveInt
    heads: PositiveInt
    head_dim: PositiveInt
    trained_latent_frames: PositiveInt


class VrprPart(_Part):
    """How positions are re-encoded.

    Attributes:
        flooring: ``"distance"`` as in the paper, ``"position"`` as in its published code.
        lengths: settings by number of latent frames; every other length follows `freeloc.vrpr.derive_settings`.
    """

    flooring: Flooring = "distance"
    lengths: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]*$")], VrprSettings] = {}


class Provenance(_Part):
    """Where a profile comes from.

    Attributes:
        kind: ``"published"`` (a source says so), ``"probed"`` (measured on the model), ``"default"`` (not measured).
        source: the publication, or the command, model, prompts and seeds of the measurement.
        notes: what a user should know.
    """

    kind: Literal["published", "probed", "default"]
    source: str
    notes: str = ""


class Profile(_Part):
    """A correction for each layer of one model.

    >>> profile = load_profile("wan2.1")
    >>> profile.model.layers, profile.policy(0), profile.policy(2), profile.provenance.kind
    (30, 'vrpr+tsa', 'vrpr', 'published')

    Attributes:
        schema_version: of this format.
        adapter: name or family of the adapter that describes the model.
        model: what the model must look like.
        layers: for each policy (``none``, ``vrpr``, ``tsa``, ``vrpr+tsa``) the layers that get it; each layer once.
        vrpr: settings of the re-encoding.
        tsa: settings of the sparse attention; by default `freeloc.tsa.derive_settings`.
        provenance: where all this comes from.
    """

    schema_version: Literal[1] = 1
    adapter: str
    model: ModelFacts
    layers: dict[Policy, list[NonNegativeInt]]
    vrpr: VrprPart = VrprPart()
    tsa: TsaSettings | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _each_layer_once(self) -> Self:
        counts = Counter(layer for layers in self.layers.values() for layer in layers)
        twice = sorted(layer for layer, count in counts.items() if count > 1)
        beyond = sorted(layer for layer in counts if layer >= self.model.layers)
        missing = self.model.layers - len(counts) + len(beyond)
        if twice:
            raise ValueError(f"layers: each layer once, found layer {twice[0]} twice")
        if beyond:
            raise ValueError(f"layers: 0 to {self.model.layers - 1} for {self.model.layers} layers, found {beyond[0]}")
        if missing:
            first = next(layer for layer in range(self.model.layers) if layer not in counts)
            raise ValueError(
                f"layers: all {self.model.layers} layers, found none for {missing} of them, first layer {first}"
            )
        return self

    def policy(self, layer: int) -> Policy:
        """What this layer gets."""
        for policy, layers in self.layers.items():
            if layer in layers:
                return policy
        raise ProfileError(f"expected a layer from 0 to {self.model.layers - 1}, found {layer}")

    def require_fit(self, shape: ModelShape, adapter_names: tuple[str, ...]) -> None:
        """Refuse a model that this profile was not made for.

        Raises:
            ProfileError: with both numbers, and the shipped profiles that would fit.
        """
        wrong = [
            f"{getattr(self.model, name)} {name}, found {getattr(shape, name)}"
            for name in ("layers", "heads", "head_dim")
            if getattr(self.model, name) != getattr(shape, name)
        ]
        if self.adapter not in adapter_names:
            wrong.insert(0, f"the adapter '{self.adapter}', found '{adapter_names[0]}'")
        if wrong:
            fitting = ", ".join(name for name, _ in fitting_profiles(shape, adapter_names)) or "none"
            raise ProfileError(
                f"the profile for {self.model.name} does not fit this model: expected {'; '.join(wrong)}. "
                f"Installed profiles that fit: {fitting}. "
                "freeloc.default_profile(model) makes one that is not measured."
            )

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all.

        Raises:
            ProfileError: if it cannot be written.
        """
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        text = _one_line_per_list(json.dumps(self.model_dump(exclude_none=True), indent=2)) + "\n"
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise ProfileError(f"cannot write the profile {path}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)


def load_profile(name_or_path: str | Path | Profile) -> Profile:
    """A profile by name (``freeloc profiles`` lists them) or from a file.

    Raises:
        ProfileError: if there is no such profile (near names are suggested) or it is malformed: the message names each
            field, its value, and what is allowed.
    """
    if isinstance(name_or_path, Profile):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix != ".json" and not path.is_file():
        try:
            path = registry().profiles.get(str(name_or_path), way_out="; or give the path of a .json file")
        except RegistryError as error:
            raise ProfileError(str(error)) from error
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except OSError as error:
        raise ProfileError(f"cannot read the profile {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not JSON: {error}") from error
    return _validated(content, str(path))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, unless it gives a field twice."""
    counts = Counter(name for name, _ in pairs)
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"the field '{name}' is given {count} times")
    return dict(pairs)


def _validated(content: Any, where: str) -> Profile:
    version = content.get("schema_version") if isinstance(content, dict) else SCHEMA_VERSION
    if type(version) is not int or version != SCHEMA_VERSION:
        newer = ". A newer file needs a newer freeloc: pip install --upgrade freeloc"
        is_newer = type(version) is int and version > SCHEMA_VERSION
        raise ProfileError(
            f"{where}: expected schema_version {SCHEMA_VERSION}, found {version!r}{newer if is_newer else ''}"
        )
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"]) or "profile"
            value = "" if isinstance(problem["input"], dict | Profile) else f", found {problem['input']!r:.80}"
            lines.append(f"  {place}: {problem['msg']}{value}")
        raise ProfileError(f"{where} is not a profile:\n" + "\n".join(lines)) from None


def fitting_profiles(shape: ModelShape, adapter_names: tuple[str, ...]) -> list[tuple[str, Profile]]:
    """Installed profiles for models of this shape."""
    found = []
    for name, _, path in registry().profiles.things():
        try:
            profile = load_profile(path)
        except ProfileError:  # told to whoever asks for it, or for the list
            continue
        same = (profile.model.layers, profile.model.heads, profile.model.head_dim)
        if profile.adapter in adapter_names and same == (shape.layers, shape.heads, shape.head_dim):
            found.append((name, profile))
    return found


def fitting_profile(transformer: nn.Module, adapter: Adapter, any_layers: bool = False) -> Profile:
    """The one installed profile that fits a model.

    With `any_layers`, for when a method replaces the choice of layers: where none or several fit, a default one.

    Raises:
        ProfileError: if none does, or several do.
        AdapterError: with `any_layers`, if the model's trained length is not known.
    """
    fitting = fitting_profiles(adapter.shape(transformer), (adapter.name, adapter.family))
    if len(fitting) == 1:
        return fitting[0][1]
    if any_layers:
        return default_profile(transformer, adapter=adapter)
    names = ", ".join(name for name, _ in fitting)
    found = f"several installed ones fit: {names}" if names else "none installed fits"
    raise ProfileError(
        f"expected profile=... for this {type(transformer).__name__}: {found}. "
        "freeloc.default_profile(model) makes one that is not measured."
    )


def default_profile(
    model: object,
    policy: Policy = "vrpr+tsa",
    trained_latent_frames: int | None = None,
    *,
    adapter: Adapter | None = None,
) -> Profile:
    """The same policy on every layer of any model that an adapter describes. Not measured, and says so.

    Args:
        model: a transformer or a pipeline.
        policy: ``none``, ``vrpr``, ``tsa`` or ``vrpr+tsa``.
        trained_latent_frames: length of the model's training clips in latent frames; by default taken from the
            installed profiles for models of this shape.
        adapter: describes the model; by default found from its class.

    Raises:
        AdapterError: if no adapter describes the model, or its trained length is not known.
        ProfileError: if the policy or the length makes no sense.
    """
    if policy not in POLICIES:
        raise ProfileError(f"expected policy to be one of {', '.join(POLICIES)}, found {policy!r}")
    transformer, adapter = transformers_of(model, adapter)[0]
    shape = adapter.shape(transformer)
    if trained_latent_frames is None:
        lengths = {
            profile.model.trained_latent_frames
            for _, profile in fitting_profiles(shape, (adapter.name, adapter.family))
        }
        if len(lengths) != 1:
            raise AdapterError(
                f"the trained length of this {type(transformer).__name__} ({shape.layers} layers, {shape.heads} heads) "
                "is not known: make a profile with freeloc.default_profile(model, trained_latent_frames=...), the "
                "latent frames of its training clips (21 for 81 video frames at 4 per latent frame)"
            )
        trained_latent_frames = lengths.pop()
    facts = {
        "name": type(transformer).__name__,
        "layers": shape.layers,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
        "trained_latent_frames": trained_latent_frames,
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "adapter": adapter.family,
        "model": facts,
        "layers": {policy: list(range(shape.layers))},
        "provenance": {"kind": "default", "source": "freeloc.default_profile", "notes": "Not measured on this model."},
    }
    return _validated(content, "default_profile")


def _one_line_per_list(text: str) -> str:
    """Indented JSON with each list of numbers on one line: 30 layers are one line of a diff, not 30."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        lines[-1:] = [lines[-1] + line.strip() + (" " if line.endswith(",") else "")] if inside else [*lines[-1:], line]
        inside = (inside or line.endswith("[")) and "]" not in line
    return "\n".join(line.rstrip() for line in lines)
