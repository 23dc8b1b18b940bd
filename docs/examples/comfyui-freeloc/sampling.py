"""The correction of a model while a sampler uses it, and what it did."""

import logging
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

import freeloc
from freeloc.errors import FreelocError

KEY = "freeloc"
"""Name of our wrapper in a ModelPatcher."""

RUNS = 16
"""How many sampling runs a correction remembers."""

SAMPLES = 256
"""How many values of a latent tell it from others."""


@dataclass
class Run:
    """One sampling run.

    Attributes:
        text: what ran.
        mark: values of the sampled latent, by which it is recognised.
        shape: its shape.
    """

    text: str
    mark: torch.Tensor
    shape: tuple

    def made(self, latent):
        """Whether this run made a latent. Samplers may round it to another type, and move it to another device."""
        return tuple(latent.shape) == self.shape and torch.allclose(mark_of(latent), self.mark, rtol=0.02, atol=0.02)


def mark_of(latent):
    """Some values of a latent, evenly over all of it."""
    values = latent.detach().flatten()
    at = torch.linspace(0, len(values) - 1, min(SAMPLES, len(values))).long()
    return values[at.to(values.device)].float().cpu()


@dataclass
class Correction:
    """A wrapper of ComfyUI's outer_sample: the model is patched while it is sampled, and as it was before and after.

    Clones of a model share it. It holds no network, since a sampler may use another one than was connected, such as
    the copy without dynamic memory.

    Attributes:
        profile: which correction each layer gets.
        method: one method for every layer instead, or None.
        references: latent frames at the start that are no part of the video, or None if the model says how many.
        backend: what computes.
        frames_per_latent: video frames per latent frame.
        runs: the last runs.
        running: the networks that a sampler uses now.
    """

    profile: freeloc.Profile
    method: str | None = None
    references: int | None = None
    backend: str = "auto"
    frames_per_latent: int = 1
    runs: deque = field(default_factory=lambda: deque(maxlen=RUNS))
    running: list = field(default_factory=list)

    def patched(self, networks):
        """Patch these networks, which are copies of one on several devices."""
        return freeloc.patch(
            _Networks(networks),
            self.profile,
            method=self.method,
            backend=self.backend,
            reference_frames=self.references,
        )

    def check(self, network):
        """Require that patching works.

        Raises:
            FreelocError: if it does not.
        """
        self.patched([network]).remove()

    def add_to(self, model):
        """Correct a ModelPatcher whenever it is sampled."""
        from comfy.patcher_extension import CallbacksMP, WrappersMP

        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self)
        model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, self.require_running)

    def __call__(self, executor, *args, **kwargs):
        """Run ComfyUI's outer_sample on patched models."""
        own = executor.class_obj.model_patcher
        running = [(self, own), *second_models(executor.class_obj, own)]
        with ExitStack() as stack:
            patches = []
            for correction, model in running:
                networks = networks_of(model)
                stack.enter_context(correction.running_on(networks))
                patches.append(stack.enter_context(correction.patched(networks)))
            latent = executor(*args, **kwargs)
        mark, shape = mark_of(latent), tuple(latent.shape)
        for (correction, _), patch in zip(running, patches, strict=True):
            text = correction.summary(patch.report())
            logging.info("%s", text.splitlines()[0])
            correction.runs.append(Run(text, mark, shape))
        return latent

    @contextmanager
    def running_on(self, networks):
        """Note that a sampler uses these networks now."""
        self.running.extend(networks)
        try:
            yield
        finally:
            del self.running[len(self.running) - len(networks) :]

    def require_running(self, model):
        """Require that a model that a sampler starts to use is patched.

        Raises:
            FreelocError: if the sampler calls no wrapper of this model, since it is the second of two models.
        """
        network = model.get_model_object("diffusion_model")
        if not any(network is known for known in self.running):
            raise FreelocError(
                "the MODEL of 'freeloc: long video' is the second of two models of a sampler, and there it can only be "
                "corrected together with the first: put a 'freeloc: long video' node before the first model as well"
            )

    def summary(self, report):
        """What ran, as text: one sentence about all of it, and freeloc's own report."""
        model = self.profile.model
        trained = f"{model.name} was trained on {self.named(model.trained_latent_frames)}"
        lengths = {frames for network in report.models for frames in network.forwards}
        corrected = {frames for layer in report.layers for frames in layer.calls}
        ran = " and of ".join(map(self.named, sorted(corrected or lengths)))
        if corrected:
            what = "a video" if len(lengths) == 1 else "windows"
            lines = [f"freeloc corrected {what} of {ran}; {trained}."]
        elif lengths and max(lengths) <= model.trained_latent_frames:
            lines = [f"freeloc changed nothing, since a video of {ran} is not too long: {trained}."]
        else:
            lines = ["freeloc corrected nothing: see below."]
        if corrected and self.profile.provenance.kind == "default":
            lines.append("The profile was not measured on this model: every layer gets the same method.")
        return "\n".join([*lines, str(report)])

    def named(self, latent_frames):
        """A length in latent frames, with the video frames that it decodes to."""
        return f"{latent_frames} latent frames ({(latent_frames - 1) * self.frames_per_latent + 1} video frames)"


class _Networks:
    """A pipeline for freeloc: named networks."""

    def __init__(self, networks):
        self.components = {f"diffusion_model {index}": network for index, network in enumerate(networks)}


def networks_of(model):
    """The network that a sampler uses, and its copies on other devices."""
    copies = getattr(model, "get_additional_models_with_key", lambda key: [])("multigpu")
    return [patcher.get_model_object("diffusion_model") for patcher in (model, *copies)]


def second_models(guider, own):
    """The other corrected models of a sampler, such as that of the negative prompt in DualModelGuider.

    Raises:
        FreelocError: if one of them is the network of the first model, and not behind the same node.
    """
    found = []
    for model in vars(guider).values():
        if model is own or not hasattr(model, "get_wrappers") or not hasattr(model, "get_model_object"):
            continue
        correction = correction_of(model)
        if correction is not None and correction is correction_of(own):  # behind the same node
            continue
        if any(network is mine for network in networks_of(model) for mine in networks_of(own)):
            raise FreelocError(
                "the two models of this sampler are one network, and freeloc cannot correct one without the other: "
                "connect both behind one 'freeloc: long video' node, or load the model twice"
            )
        if correction is not None:
            found.append((correction, model))
    return found


def correction_of(model):
    """The correction that a 'freeloc: long video' node gave to a model, or None."""
    from comfy.patcher_extension import WrappersMP

    found = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return found[-1] if found else None
