"""Method: a named way to make the plan of a layer. Profiles, ``freeloc.patch`` and plugins refer to it by its name."""

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
"""What a layer gets: one plan, or one for each of its heads."""

PlanFunction = Callable[[Any, int, int], Plans]
"""(profile, layer, latent frames) -> plan of the layer, or one plan per head."""


class ModelLike(Protocol):
    """What a method may know of a model."""

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
    """What a method may read of a profile."""

    @property
    def model(self) -> ModelLike:
        """The model that the profile is for."""


@dataclass(frozen=True)
class Method:
    """A named way to make plans. Plugins bring more of them.

    >>> method = Method("direct", lambda profile, layer, frames: FramePlan.identity(frames))
    >>> method.colour
    '#bc37c8'

    With settings, which a profile gives to a layer or to heads:

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
        plan: (profile, layer, latent frames) -> plan, or one per head; what it needs to know of the model is in
            ``profile.model``. With a schema of settings: (profile, layer, latent frames, settings).
        source: publication, or what it does in a few words.
        noise: what the method does to the initial noise, (noise of shape (batch, channels, frames, height, width),
            trained latent frames, generator) -> noise. Sampling code applies it: a patch cannot.
        settings: schema of its settings, a pydantic model; None if it has none. `plan` gets an instance of it.
        defaults: the settings under a profile (profile -> instance of `settings`). What a policy gives replaces them
            field by field. By default the schema's own defaults.
        colour: in pictures, ``"#rrggbb"``; by default one that follows from the name.

    Raises:
        FreelocError: if `settings`, `defaults` or `colour` is something else.
    """

    name: str
    plan: Callable[..., Plans]
    source: str = ""
    noise: Callable[[Tensor, int, torch.Generator], Tensor] | None = None
    settings: type[BaseModel] | None = None
    defaults: Callable[[Any], BaseModel] | None = None
    colour: str = ""

    def __post_init__(self) -> None:
        schema = self.settings
        if schema is not None and not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            raise FreelocError(
                f"method '{self.name}': expected settings as a class derived from pydantic.BaseModel, found {schema!r}"
            )
        if self.defaults is not None and schema is None:
            raise FreelocError(f"method '{self.name}': expected settings beside defaults, found None")
        if self.colour and not re.fullmatch("#[0-9a-f]{6}", self.colour):
            raise FreelocError(
                f"method '{self.name}': expected a colour like '#30408f', with lower-case digits, found '{self.colour}'"
            )
        object.__setattr__(self, "colour", self.colour or colour_of(self.name))


def colour_of(name: str) -> str:
    """A colour that follows from a name: always the same, and for most names another.

    >>> colour_of("sliding-window"), colour_of("riflex")
    ('#bc3f62', '#cf5299')
    """
    hue, light, strong = (part / 255 for part in hashlib.sha256(name.encode("utf-8", "replace")).digest()[:3])
    rgb = colorsys.hls_to_rgb(hue, 0.4 + 0.3 * light, 0.4 + 0.3 * strong)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
