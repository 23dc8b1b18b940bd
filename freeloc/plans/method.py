"""Method: a named function that makes the plan of a layer. Profiles and ``freeloc.patch`` refer to it by name."""

import colorsys
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.plans.frame_plan import FramePlan

Plans = FramePlan | Sequence[FramePlan]
"""The plans of a layer: one plan, or one for each of its heads."""

PlanFunction = Callable[[Any, int, int], Plans]
"""(profile, layer, latent frames) -> plan of the layer, or one plan per head."""


class ModelLike(Protocol):
    """What a method may read about a model."""

    @property
    def layers(self) -> int:
        """Number of transformer layers."""

    @property
    def heads(self) -> int:
        """Attention heads per layer."""

    @property
    def head_dim(self) -> int:
        """Channels per head."""

    @property
    def trained_latent_frames(self) -> int:
        """Length of the clips that the model was trained on, in latent frames."""


class ProfileLike(Protocol):
    """What a method may read from a profile."""

    @property
    def model(self) -> ModelLike:
        """The model that the profile is for."""


@dataclass(frozen=True)
class Method:
    """A named function that makes plans. Plugins can register more methods.

    >>> method = Method("direct", lambda profile, layer, frames: FramePlan.identity(frames))
    >>> method.colour
    '#bc37c8'

    A method may have settings, which a profile sets for layers or heads:

    >>> from freeloc.plans.baselines import ultravico
    >>> class Decay(BaseModel):
    ...     factor: float = 0.9
    >>> method = Method(
    ...     "decay",
    ...     lambda profile, layer, frames, own: ultravico(frames, profile.model.trained_latent_frames, own.factor),
    ...     settings=Decay,
    ... )

    Args:
        name: for ``freeloc.patch(model, method=name)``, and for profiles.
        plan: (profile, layer, latent frames) -> plan, or one per head; ``profile.model`` describes the model. With a
            schema of settings: (profile, layer, latent frames, settings).
        source: publication, or what it does in a few words.
        noise: function that prepares the initial noise, (noise of shape (batch, channels, frames, height, width),
            trained latent frames, generator) -> noise. `freeloc.patch` applies it in a pipeline; elsewhere, the code
            that samples does.
        settings: schema of its settings, a pydantic model; None if it has none. `plan` receives an instance of it.
        defaults: function from a profile to an instance of `settings`. The settings of a policy replace these field by
            field. By default the defaults of the schema.
        colour: colour in pictures, ``"#rrggbb"``; by default one derived from the name.

        label: function from an instance of `settings` to a few words, for lists and pictures; by default what a profile
            gives.

    Raises:
        FreelocError: if `settings`, `defaults` or `colour` is not as described.
    """

    name: str
    plan: Callable[..., Plans]
    source: str = ""
    noise: Callable[[Tensor, int, torch.Generator], Tensor] | None = None
    settings: type[BaseModel] | None = None
    defaults: Callable[[Any], BaseModel] | None = None
    colour: str = ""
    label: Callable[[Any], str] | None = None

    def __post_init__(self) -> None:
        schema = self.settings
        if schema is not None and not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            raise FreelocError(
                f"method '{self.name}': expected settings as a class derived from pydantic.BaseModel, found {schema!r}"
            )
        for name in ("defaults", "label"):
            if getattr(self, name) is not None and schema is None:
                raise FreelocError(f"method '{self.name}': expected settings beside {name}, found None")
        if self.colour and not re.fullmatch("#[0-9a-f]{6}", self.colour):
            raise FreelocError(
                f"method '{self.name}': expected a colour like '#30408f', with lower-case digits, found '{self.colour}'"
            )
        object.__setattr__(self, "colour", self.colour or colour_of(self.name))


def colour_of(name: str) -> str:
    """A colour derived from a name: always the same for one name, and different for most others.

    >>> colour_of("sliding-window"), colour_of("riflex")
    ('#bc3f62', '#cf5299')
    """
    hue, light, strong = (part / 255 for part in hashlib.sha256(name.encode("utf-8", "replace")).digest()[:3])
    rgb = colorsys.hls_to_rgb(hue, 0.4 + 0.3 * light, 0.4 + 0.3 * strong)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
