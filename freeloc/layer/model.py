"""ModelAttention: the corrected attention of all layers of a model, for an engine with model code of its own."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import Adapter, ModelShape, Refusal
from freeloc.attention import Backend
from freeloc.errors import AdapterError, LayoutError
from freeloc.layer.attend import attend_layer
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.length import VideoLength
from freeloc.profile.files import load_profile
from freeloc.profile.matching import fitting_profile_of, require_shape
from freeloc.profile.planning import noise_method, plans_of_call
from freeloc.profile.schema import Profile
from freeloc.registry import registry

logger = logging.getLogger("freeloc")


@dataclass
class ModelAttention:
    """What an engine calls in place of its own attention, in each layer of one model.

    The engine has loaded the model with code of its own. It knows the path of each attention module, such as
    ``"blocks.3.attn1"``, which often is that of the model that a freeloc adapter describes. The calls are not for
    torch.compile to trace: where an engine compiles, exclude them with ``torch.compiler.disable``.

    >>> import torch
    >>> model = ModelAttention.find("wan", layers=30, heads=12, head_dim=128)
    >>> model.layer_of("blocks.3.attn1"), model.layer_of("blocks.3.attn2")
    (3, None)
    >>> model.corrects(3, frames=21), model.corrects(3, frames=41)
    (False, True)
    >>> query, key, value = torch.randn(3, 1, 41 * 2 * 3, 12, 128)
    >>> model.attend(3, query, key, value, grid=(41, 2, 3)).shape
    torch.Size([1, 246, 12, 128])

    Args:
        profile: what each layer gets.
        rope: which channels of a head the temporal RoPE rotates; None if the model has none.
        sites: module paths of its attention over the video, with one ``*`` for the layer.
        backend: as in `freeloc.patch`.
        name: what to call the profile in messages.
        say: gets one sentence after the first forward of each length: which layers were corrected. By default it is
            logged.
    """

    profile: Profile
    rope: TemporalRope | None
    sites: tuple[str, ...] = ()
    backend: str | Backend = "auto"
    name: str = ""
    say: Callable[[str], None] = logger.info
    _due: dict[int, frozenset[int]] = field(default_factory=dict, init=False, repr=False)
    _seen: dict[int, set[int]] = field(default_factory=dict, init=False, repr=False)
    _said: set[int] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def find(
        cls,
        adapter: str,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        config: Mapping[str, object] | None = None,
        profile: str | Path | Profile | None = None,
        backend: str | Backend = "auto",
        say: Callable[[str], None] = logger.info,
    ) -> "ModelAttention":
        """The attention of a model of this size, with the RoPE and the module paths of an adapter.

        Args:
            adapter: name of the adapter that describes the same model, such as ``"wan"`` (``freeloc adapters``).
            layers, heads, head_dim: sizes of the whole model, whatever part of it this process has.
            config: the model's configuration, for adapters that read it, as in ``"config.rope_theta"``.
            profile: a profile, its name or path; by default the installed one that fits, as in `freeloc.patch`.
            backend: as in `freeloc.patch`.
            say: see the class.

        Raises:
            ProfileError: if the profile does not fit, or none or several do.
            AdapterError: if the adapter's RoPE or layers can only be read from a model that freeloc has.
            RegistryError: if there is no such adapter.
        """
        known, shape = registry().adapters.get(adapter), ModelShape(layers, heads, head_dim)
        if isinstance(known, Refusal):
            raise AdapterError(f"{adapter} cannot be corrected: {known.reason}")
        rope = _rope_from(known, config or {})
        names = (known.name, known.family)
        if profile is None:
            chosen = fitting_profile_of(shape, names)
        else:
            chosen = load_profile(profile)
            require_shape(chosen, shape, names)
        name = f"{chosen.model.name}, {chosen.provenance.kind}"
        return cls(chosen, rope, tuple(site.path for site in known.sites), backend, name, say)

    def layer_of(self, path: str) -> int | None:
        """The number of the layer with this path; None for a module that is not attention over the video."""
        for site in self.sites:
            before, after = site.split("*")
            number = path.removeprefix(before).removesuffix(after)
            if path == f"{before}{number}{after}" and number.isdecimal():
                return int(number)
        return None

    @property
    def trained_frames(self) -> int:
        """Latent frames of the model's training clips: up to this length, no layer is corrected."""
        return self.profile.model.trained_latent_frames

    def corrects(self, layer: int, frames: int) -> bool:
        """Whether a layer is due for correction at this number of latent frames. If not, call your own kernel."""
        return frames > self.trained_frames and layer in self._due_layers(frames)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        grid: tuple[int, int, int],
        first_head: int = 0,
        text_first: int = 0,
        text_last: int = 0,
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """The corrected attention of one layer.

        Args:
            layer: number of the layer.
            query, key, value: (batch, tokens, heads, head_dim), rotated by the model: text, the video frame by frame in
                raster order, text, then padding. Nothing attends to padding; its output is zero.
            grid: latent frames, rows and columns of video tokens of the whole video.
            first_head: number of the first head that these tensors hold, where devices share the heads. Heads beyond
                the model's last are padding, too.
            text_first, text_last: text tokens before and after the video.
            mask: a mask of the tokens without padding, as in `attend_layer`.
            scale: scale of the logits; by default head_dim ** -0.5.

        Returns:
            (batch, tokens, heads, head_dim).

        Raises:
            LayoutError: if the tensors have fewer tokens than the grid, or no head of the model.
        """
        tokens, heads = text_first + grid[0] * grid[1] * grid[2] + text_last, self.profile.model.heads
        own = range(first_head, min(first_head + query.shape[2], heads))
        if first_head < 0:
            raise LayoutError(f"expected a first head from 0 to {heads - 1}, found {first_head}")
        if not own:
            return torch.zeros_like(query)
        if min(query.shape[1], key.shape[1]) < tokens:
            raise LayoutError(
                f"expected all {tokens} tokens ({grid[0]} latent frames of {grid[1]} x {grid[2]}, "
                f"{text_first + text_last} of text) in each call, found {query.shape[1]} queries and {key.shape[1]} "
                "keys: devices can share the heads of this attention, but not its tokens"
            )
        parts = (x[:, :tokens, : len(own)].transpose(1, 2) for x in (query, key, value))
        found = attend_layer(
            self.profile,
            layer,
            *parts,
            grid=grid,
            rope=self.rope,
            text_first=text_first,
            text_last=text_last,
            heads=own,
            mask=mask,
            scale=scale,
            backend=self.backend,
        ).transpose(1, 2)
        self._note(layer, grid)
        if found.shape == query.shape:
            return found.contiguous()
        out = torch.zeros_like(query)
        out[:, :tokens, : len(own)] = found
        return out

    def _due_layers(self, frames: int) -> frozenset[int]:
        if frames not in self._due:
            self._due[frames] = frozenset(
                layer for layer in range(self.profile.model.layers) if not self._leaves_alone(layer, frames)
            )
        return self._due[frames]

    def _leaves_alone(self, layer: int, frames: int) -> bool:
        plans = plans_of_call(self.profile, layer, VideoLength(frames))
        return all(plan.is_identity for plan in ([plans] if isinstance(plans, FramePlan) else plans))

    def _note(self, layer: int, grid: tuple[int, int, int]) -> None:
        """Count a call, and say at the end of the first forward of a length which layers were corrected."""
        frames = grid[0]
        if frames in self._said:
            return
        seen = self._seen.setdefault(frames, set())
        first_again = layer in seen  # a process may have only some of the layers
        seen.add(layer)
        if first_again or seen == self._due_layers(frames):
            self._said.add(frames)
            self.say(self.report(frames))

    def report(self, frames: int) -> str:
        """One sentence about the calls of this length so far."""
        seen, model = sorted(self._seen.get(frames, ())), self.profile.model
        return (
            f"freeloc: {frames} latent frames, trained on {self.trained_frames}: corrected {len(seen)} of "
            f"{model.layers} layers ({_ranges(seen) or 'none'}), profile {self.name or model.name}{self._noise()}"
        )

    def _noise(self) -> str:
        """What to say of initial noise that the profile asks for."""
        method = noise_method(self.profile)
        return f"; the initial noise of {method.name} is not prepared here" if method else ""


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as ranges.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _rope_from(adapter: Adapter, config: Mapping[str, object]) -> TemporalRope | None:
    """The rope of an adapter for a model that freeloc does not have, only its config."""
    rope = adapter.rope
    if rope is not None and (rope.frequencies_from or rope.step):
        raise AdapterError(_NEEDS_MODEL.format(adapter.name, "its RoPE"))
    if len(adapter.sites) > 1 or any(site.layers or site.tokens != "f h w" for site in adapter.sites):
        raise AdapterError(_NEEDS_MODEL.format(adapter.name, "the numbers of its layers"))
    stand_in: Any = SimpleNamespace(config=SimpleNamespace(**config))
    return adapter.rope_of(stand_in)


_NEEDS_MODEL = (
    "the adapter '{}' reads {} from a model of its own classes: expected ModelAttention(profile, rope, sites), with "
    "what this model has"
)
