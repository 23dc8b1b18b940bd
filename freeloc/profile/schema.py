"""Profiles: which correction each layer of a model gets, as a JSON file that a person can read in a pull request."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from freeloc.errors import ProfileError
from freeloc.files import replacing
from freeloc.plans.tsa import TsaSettings
from freeloc.plans.vrpr import Flooring, VrprSettings

SCHEMA_VERSION = 1

LARGEST_FILE = 1_000_000
"""Bytes of a profile, at most."""

MOST_PLACES = 10_000
"""Layers of a model, heads of a layer, and channels of a head, at most."""

Policy = Literal["none", "vrpr", "tsa", "vrpr+tsa"]
POLICIES: tuple[Policy, ...] = ("none", "vrpr", "tsa", "vrpr+tsa")


Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})$")]
"""As JSON writes the number of a layer where it is a name."""

Place = Annotated[int, Field(ge=0, le=1_000_000)]
"""Number of a layer or head. How many the model has is checked later, in better words."""

Places = Annotated[list[Place], Field(max_length=MOST_PLACES)]


def _shown(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected a name on one line without control characters")
    return name


Name = Annotated[str, Field(max_length=500), AfterValidator(_shown)]
"""What messages, reports and titles show as it is."""

Text = Annotated[str, Field(max_length=LARGEST_FILE)]
"""Where its length is bounded, pydantic also refuses half of a surrogate pair, which cannot be printed."""


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

    name: Name
    layers: Annotated[int, Field(gt=0, le=MOST_PLACES)]
    heads: Annotated[int, Field(gt=0, le=MOST_PLACES)]
    head_dim: Annotated[int, Field(gt=0, le=MOST_PLACES)]
    trained_latent_frames: Annotated[int, Field(gt=0, le=100_000)]


class VrprPart(_Part):
    """How positions are re-encoded.

    Attributes:
        flooring: ``"distance"`` as in the paper, ``"position"`` as in its published code.
        lengths: settings by number of latent frames; every other length follows `freeloc.plans.vrpr.derive_settings`.
    """

    flooring: Flooring = "distance"
    lengths: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}$")], VrprSettings] = {}


class Provenance(_Part):
    """Where a profile comes from.

    Attributes:
        kind: ``"published"`` (a source says so), ``"probed"`` (measured on the model), ``"default"`` (not measured).
        source: the publication, or the command, model, prompts and seeds of the measurement.
        notes: what a user should know.
    """

    kind: Literal["published", "probed", "default"]
    source: Text
    notes: Text = ""


class Evidence(_Part):
    """The measurements that a choice rests on: the file of the same name that ends in ``.safetensors``.

    Attributes:
        sha256: of that file, 64 hex digits.
        rule: how the choice was made from them.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rule: Text


class Profile(_Part):
    """A correction for each layer of one model.

    >>> from freeloc import load_profile
    >>> profile = load_profile("wan2.1")
    >>> profile.model.layers, profile.policy(0), profile.policy(2), profile.provenance.kind
    (30, 'vrpr+tsa', 'vrpr', 'published')

    Attributes:
        schema_version: of this format.
        adapter: name or family of the adapter that describes the model.
        model: what the model must look like.
        layers: for each policy (``none``, ``vrpr``, ``tsa``, ``vrpr+tsa``) the layers that get it; each layer once.
        heads: by layer, heads that get another policy than their layer.
        vrpr: settings of the re-encoding.
        tsa: settings of the sparse attention; by default `freeloc.plans.tsa.derive_settings`.
        provenance: where all this comes from.
        evidence: the measurements, if there are any.
    """

    schema_version: Literal[1] = 1
    adapter: Name
    model: ModelFacts
    layers: dict[Policy, Places]
    heads: dict[Number, dict[Policy, Places]] = {}
    vrpr: VrprPart = VrprPart()
    tsa: TsaSettings | None = None
    provenance: Provenance
    evidence: Evidence | None = None

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

    @model_validator(mode="after")
    def _each_head_once(self) -> Self:
        for layer, groups in self.heads.items():
            counts = Counter(head for heads in groups.values() for head in heads)
            if int(layer) >= self.model.layers:
                raise ValueError(f"heads: layers 0 to {self.model.layers - 1}, found layer {layer}")
            for head, count in counts.items():
                if head >= self.model.heads:
                    raise ValueError(f"heads: 0 to {self.model.heads - 1} of layer {layer}, found {head}")
                if count > 1:
                    raise ValueError(f"heads: each head of layer {layer} once, found head {head} {count} times")
            if not counts:
                raise ValueError(f"heads: at least one head of layer {layer}, found none")
        return self

    def policy(self, layer: int) -> Policy:
        """What this layer gets."""
        for policy, layers in self.layers.items():
            if layer in layers:
                return policy
        raise ProfileError(f"expected a layer from 0 to {self.model.layers - 1}, found {layer}")

    def head_policies(self, layer: int) -> list[Policy]:
        """What each head of this layer gets."""
        found = [self.policy(layer)] * self.model.heads
        for policy, heads in self.heads.get(str(layer), {}).items():
            for head in heads:
                found[head] = policy
        return found

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all.

        Raises:
            ProfileError: if it cannot be written, or would be too large to be read again.
        """
        path = Path(path)
        content = self.model_dump(exclude_none=True)
        if not self.heads:
            del content["heads"]
        text = _one_line_per_list(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"
        data = re.sub(r"[^ -~\n]", _escaped, text).encode()
        if len(data) > LARGEST_FILE:
            raise ProfileError(
                f"cannot write the profile {path}: expected at most {LARGEST_FILE} bytes, found {len(data)}"
            )
        try:
            with replacing(path) as part:
                part.write_bytes(data)
        except OSError as error:
            raise ProfileError(f"cannot write the profile {path}: {error.strerror}") from error
        except ValueError as error:
            raise ProfileError(f"cannot write the profile {str(path)!r}: {error}") from error


def _escaped(letter: re.Match[str]) -> str:
    """A letter as people write it, or as JSON escapes it where it would not be seen."""
    return letter[0] if letter[0].isprintable() else json.dumps(letter[0])[1:-1]


def _one_line_per_list(text: str) -> str:
    """Indented JSON with each list of numbers on one line: 30 layers are one line of a diff, not 30."""
    lines: list[str] = []
    inside = False
    for line in text.split("\n"):
        lines[-1:] = [lines[-1] + line.strip() + (" " if line.endswith(",") else "")] if inside else [*lines[-1:], line]
        inside = (inside or line.endswith("[")) and "]" not in line
    return "\n".join(line.rstrip() for line in lines)
