"""Profiles: which correction each layer of a model gets, as a JSON file that a person can read in a pull request."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from freeloc.errors import ProfileError
from freeloc.files import replacing
from freeloc.plans.tsa import TsaSettings
from freeloc.plans.vrpr import VrprPart
from freeloc.profile.text import as_json

SCHEMA_VERSION = 3
"""The newest version of the schema. Version 1 supports the `POLICIES` only; files of all versions are read."""

LARGEST_FILE = 1_000_000
"""Largest size of a profile's file, in bytes."""

MOST_PLACES = 10_000
"""Largest number of layers of a model, of heads of a layer, and of channels of a head."""

MOST_POLICIES = 100
"""Largest number of policies that a profile can define."""

Policy = str
"""Name of a policy that the profile defines in `Profile.policies`, or of a registered method."""

POLICIES: tuple[Policy, ...] = ("none", "vrpr", "tsa", "vrpr+tsa")
"""FreeLOC's own policies, which every version of the schema supports."""

Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})$")]
"""Number of a layer as the name of a JSON field."""

Place = Annotated[int, Field(ge=0, le=1_000_000)]
"""Number of a layer or head. A later check, with a clearer message, compares it with the model."""

Places = Annotated[list[Place], Field(max_length=MOST_PLACES)]


def _shown(name: str) -> str:
    if not name.isprintable():
        raise ValueError("expected a name on one line without control characters")
    return name


Name = Annotated[str, Field(max_length=500), AfterValidator(_shown)]
"""A name that messages, reports and titles can show unchanged."""

PolicyName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_shown)]

Text = Annotated[str, Field(max_length=LARGEST_FILE)]
"""With a bound on the length, pydantic also refuses half of a surrogate pair, which cannot be printed."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelFacts(_Part):
    """The properties of the model that a profile is for.

    Attributes:
        name: a name for people, such as the checkpoint's.
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


def _finite(settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(settings, allow_nan=False)  # raises a ValueError
    return settings


class PolicyPart(_Part):
    """A policy that a profile defines: a method with settings of its own.

    Attributes:
        method: name of a registered method (``freeloc methods``).
        settings: settings by field of the method's schema; the others are those of
            `freeloc.plans.method.Method.defaults`.
    """

    method: PolicyName
    settings: Annotated[dict[str, JsonValue], AfterValidator(_finite)] = {}


class Provenance(_Part):
    """Where a profile comes from.

    Attributes:
        kind: ``"published"`` (from a publication), ``"probed"`` (measured on the model), ``"default"`` (not measured).
        source: the publication, or the command, model, prompts and seeds of the measurement.
        notes: notes for users.
    """

    kind: Literal["published", "probed", "default"]
    source: Text
    notes: Text = ""


class Evidence(_Part):
    """The measurements behind a profile's choice: a file of the same name that ends in ``.safetensors``.

    Attributes:
        sha256: SHA-256 of that file, 64 hex digits.
        rule: how the choice was made from the measurements.
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
        schema_version: version of this format. Version 2 adds `policies`, and supports any registered method. Version 3
            adds `noise`.
        adapter: name or family of the adapter that describes the model.
        model: the properties that the model must have.
        policies: methods with settings of their own, by names that `layers` and `heads` can use.
        layers: for each policy (a name of `policies`, or of a method such as ``none``, ``vrpr``, ``tsa`` and
            ``vrpr+tsa``) the layers that get it; each layer once.
        heads: by layer, the heads that get another policy than their layer.
        vrpr: settings of VRPR, for policies without settings of their own.
        tsa: settings of TSA, for policies without settings of their own; by default
            `freeloc.plans.tsa.derive_settings`.
        noise: name of a registered method with noise of its own, such as ``freenoise``, from which videos beyond the
            trained length start, whatever the policies of the layers are; None for that of the policies.
        provenance: where the profile comes from.
        evidence: the measurements, if there are any.
    """

    schema_version: Literal[1, 2, 3] = 1
    adapter: Name
    model: ModelFacts
    policies: Annotated[dict[PolicyName, PolicyPart], Field(max_length=MOST_POLICIES)] = {}
    layers: dict[PolicyName, Places]
    heads: dict[Number, dict[PolicyName, Places]] = {}
    vrpr: VrprPart = VrprPart()
    tsa: TsaSettings | None = None
    noise: PolicyName | None = None
    provenance: Provenance
    evidence: Evidence | None = None

    @field_validator("policies", "layers", "heads")
    @classmethod
    def _known_to_the_version(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("schema_version") != 1:
            return value
        if info.field_name == "policies" and value:
            raise ValueError('policies need "schema_version": 2, found 1')
        groups = value.values() if info.field_name == "heads" else [value if info.field_name == "layers" else {}]
        for name in (name for group in groups for name in group):
            if name not in POLICIES:
                raise ValueError(
                    f"Input should be 'none', 'vrpr', 'tsa' or 'vrpr+tsa', found '{name}'; "
                    'other methods and policies need "schema_version": 2'
                )
        return value

    @field_validator("noise")
    @classmethod
    def _noise_known_to_the_version(cls, value: str | None, info: ValidationInfo) -> str | None:
        version = info.data.get("schema_version", SCHEMA_VERSION)
        if value is not None and version < 3:
            raise ValueError(f'noise needs "schema_version": 3, found {version}')
        return value

    @model_validator(mode="after")
    def _each_policy_used(self) -> Self:
        unused = [name for name in self.policies if name not in self.used_policies]
        if unused:
            raise ValueError(f"policies: each the policy of a layer or head, found '{unused[0]}' of none: remove it")
        return self

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

    @property
    def used_policies(self) -> list[Policy]:
        """The policies of layers and heads, each once: FreeLOC's own first, then in the order of the file."""
        groups = [self.layers, *self.heads.values()]
        used = dict.fromkeys(name for group in groups for name, places in group.items() if places)
        return [*(name for name in POLICIES if name in used), *(name for name in used if name not in POLICIES)]

    def policy(self, layer: int) -> Policy:
        """The policy of this layer."""
        for policy, layers in self.layers.items():
            if layer in layers:
                return policy
        raise ProfileError(f"expected a layer from 0 to {self.model.layers - 1}, found {layer}")

    def head_policies(self, layer: int) -> list[Policy]:
        """The policy of each head of this layer."""
        found = [self.policy(layer)] * self.model.heads
        for policy, heads in self.heads.get(str(layer), {}).items():
            for head in heads:
                found[head] = policy
        return found

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, in the oldest version of the schema that supports it. The write is atomic.

        Raises:
            ProfileError: if the file cannot be written, or would be too large to read.
        """
        path = Path(path)
        content = self.model_dump(exclude_none=True)
        content["schema_version"] = version_for(self.policies, self.layers, self.heads, self.noise)
        for name in ("policies", "heads"):
            if not content[name]:
                del content[name]
        for name, policy in self.policies.items():  # None may be the value of a setting
            content["policies"][name] = policy.model_dump(exclude_unset=True)
        data = as_json(content)
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


def version_for(
    policies: Iterable[str], layers: Iterable[str], heads: Mapping[str, Iterable[str]], noise: str | None = None
) -> int:
    """The oldest version of the schema that supports these policies and this noise.

    >>> version_for([], ["vrpr", "none"], {}), version_for([], ["vrpr"], {"3": ["riflex"]})
    (1, 2)
    >>> version_for([], ["vrpr"], {}, "freenoise")
    3
    """
    if noise is not None:
        return 3
    names = {*layers, *(name for group in heads.values() for name in group)}
    return 1 if not list(policies) and names <= set(POLICIES) else 2
