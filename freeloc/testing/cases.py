"""Case: an example with its adapter, runs of its model, and the attention calls of its sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import einops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeloc.adapter.example import Example
from freeloc.adapter.paths import argument_at, with_argument
from freeloc.adapter.reader import Signature
from freeloc.adapter.spec import Adapter
from freeloc.attention.prepared import PreparedPlan
from freeloc.interception.patched import Correction
from freeloc.interception.watch import LayerCall
from freeloc.patching import backends_named, hooks_for, patch
from freeloc.plans.frame_plan import DENSE, NONE, FramePlan
from freeloc.plans.length import VideoLength
from freeloc.profile.matching import default_profile
from freeloc.profile.planning import policy_plan
from freeloc.profile.schema import Policy, Profile

TRAINED = 3
FRAMES = 8
HEIGHT, WIDTH = 2, 3


@dataclass(frozen=True)
class SiteCall(LayerCall):
    """One attention call of a site, read as the adapter describes it."""

    def video(self, tensor: Tensor) -> Tensor:
        """The video tokens of query, key or value, (batch, heads, frames, tokens_per_frame, head_dim)."""
        frames: Tensor = tensor[:, :, self.layout.video].unflatten(
            2, (self.layout.frames, self.layout.tokens_per_frame)
        )
        return frames

    def prepared(self, plan: FramePlan) -> PreparedPlan:
        """A plan prepared for this call."""
        return PreparedPlan(plan, self.rope, self.query.shape[-1], self.frequencies)


class Case:
    """An example and its adapter."""

    def __init__(self, example: Example, adapter: Adapter) -> None:
        self.example = example
        self.adapter = adapter
        self.model = example.model()

    @property
    def tolerance(self) -> float:
        """Largest error of rotations and attention, as a share of the largest value."""
        return max(self.example.tolerance, self.adapter.rounding)

    def profile(self, policy: Policy = "none") -> Profile:
        """A profile with the same policy on every layer, with `TRAINED` as the trained length."""
        return default_profile(self.model, policy, TRAINED, adapter=self.adapter)

    def plan(self, policy: Policy, frames: int = FRAMES) -> FramePlan:
        """The plan of a policy."""
        return policy_plan(self.profile(), policy, frames)

    def strongest(self, profile: Profile, layer: int, frames: int) -> FramePlan:
        """The strongest correction that the model supports."""
        return policy_plan(profile, "tsa" if self.adapter.rope_of(self.model) is None else "vrpr+tsa", frames)

    def inputs(self, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH, batch: int = 2) -> dict[str, Any]:
        """Inputs for a grid of this size."""
        return self.example.inputs(frames, height, width, batch)

    def run(self, inputs: Mapping[str, Any], model: nn.Module | None = None) -> Tensor:
        """The model's first output tensor."""
        with torch.no_grad():
            return _first_tensor(self.example.output(model or self.model, inputs))

    def run_patched(self, inputs: Mapping[str, Any], method: Callable[[Profile, int, int], FramePlan]) -> Tensor:
        """The model's first output tensor when it is patched with a method."""
        with patch(self.model, self.profile(), adapter=self.adapter, method=method):
            return self.run(inputs)

    def calls(self, inputs: Mapping[str, Any] | None = None, mute: bool = False) -> list[SiteCall]:
        """Every attention call of a site in an uncorrected run; with `mute`, all of them return zeros."""
        found: list[SiteCall] = []

        def note(call: LayerCall) -> Tensor:
            found.append(SiteCall(**vars(call)))
            query, key, value = call.query, call.key, call.value
            if mute:
                return torch.zeros_like(query)
            out = F.scaled_dot_product_attention(
                query.to(value.dtype), key.to(value.dtype), value, call.mask, scale=call.scale
            )
            return out.to(query.dtype)

        correction = Correction(
            "the suite", lambda layer: "observed", self._identity, backends_named("sdpa"), note, False
        )
        hooks = hooks_for([(self.model, self.adapter)], correction)
        try:
            for hook in hooks:
                hook.install()
            self.run(self.inputs() if inputs is None else inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @staticmethod
    def _identity(layer: int, length: VideoLength) -> FramePlan:
        return FramePlan.identity(length.frames)

    def positions_per_frame(self) -> float:
        """The positions per latent frame that the adapter reads in a run."""
        rope = self.adapter.rope
        given = Signature(self.model).given((), self.inputs())
        return 1.0 if rope is None or rope.step is None else float(rope.step(self.model, given))

    def first_call(self, inputs: Mapping[str, Any] | None = None) -> SiteCall:
        """The call of the first layer, before attention has mixed the tokens."""
        path = next(path for _, _, path, _ in self.adapter.places(self.model))
        return next(call for call in self.calls(inputs) if call.path == path)

    def muted_calls(self, inputs: Mapping[str, Any]) -> list[SiteCall]:
        """The call of the first module of each site, in a run in which no site has mixed the tokens."""
        paths = [[path for _, path, _ in site.modules(self.model)] for site in self.adapter.sites]
        firsts = [known[0] for known in paths if known]  # some models of a class have no blocks of one kind
        calls = self.calls(inputs, mute=True)
        return [next(call for call in calls if call.path == path) for path in firsts]

    def change_video(self, inputs: dict[str, Any], change: Callable[[Tensor], object]) -> dict[str, Any]:
        """Inputs with a changed video. The function changes (frames, height, width, ...), before patches, in place."""
        video = argument_at(inputs, self.example.video)
        whole = [video] if isinstance(video, Tensor) else list(video)
        changed = [self._change(tensor, change) for tensor in whole]
        return with_argument(inputs, self.example.video, changed[0] if isinstance(video, Tensor) else changed)

    def _change(self, video: Tensor, change: Callable[[Tensor], object]) -> Tensor:
        axes = self.example.axes or self.adapter.grid.axes
        rest = " ".join(name for name in axes.replace("(", "").replace(")", "").split() if name not in "fhw")
        sizes = {"f": FRAMES, "h": HEIGHT, "w": WIDTH} if "(" in axes else {}
        arranged = einops.rearrange(video, f"{axes} -> f h w {rest}", **sizes).clone()
        change(arranged)
        shape = dict(zip(["f", "h", "w", *rest.split()], arranged.shape, strict=True))
        return einops.rearrange(arranged, f"f h w {rest} -> {axes}", **shape)


def everything(profile: Profile, layer: int, frames: int) -> FramePlan:
    """The plan that changes nothing."""
    return FramePlan.identity(frames)


def everything_through_the_engine(profile: Profile, layer: int, frames: int) -> FramePlan:
    """A plan with a negligible change, so that it is executed."""
    plan = FramePlan.identity(frames)
    return FramePlan(plan.positions, plan.visibility, logit_scale=1 + 1e-9)


def almost_everything(profile: Profile, layer: int, frames: int) -> FramePlan:
    """A plan that hides the other frames from frame 0, so that every call is intercepted."""
    visibility = FramePlan.identity(frames).visibility.clone()
    visibility[0, 1:] = NONE
    return FramePlan(FramePlan.identity(frames).positions, visibility)


def local(profile: Profile, layer: int, frames: int) -> FramePlan:
    """A plan in which each frame attends to itself only."""
    return FramePlan(FramePlan.identity(frames).positions, torch.eye(frames, dtype=torch.uint8) * DENSE)


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return _first_tensor(next(iter(output.values() if isinstance(output, Mapping) else output)))
