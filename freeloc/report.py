"""What a patch did: which attention calls it corrected and how, which it did not correct, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

UNCHANGED = "for which the plan changes nothing"


@dataclass
class LayerReport:
    """What happened in one attention module.

    Attributes:
        layer: number of the layer in the profile.
        path: path of the module in the model.
        method: the policy or function that made the plan.
        calls: corrected calls, by number of latent frames. A batch whose samples differ in size counts per sample.
            Calls that gradient checkpointing runs again count again; `notes` says how many these are.
        largest_before: largest relative position before the correction, in latent frames.
        largest_after: and after it.
        shares: share of all token pairs that were attended, 0..1, summed over corrected calls.
        untouched: calls of the module that freeloc left alone, by reason. In a compiled model, the calls of layers that
            the profile does not correct are not counted.
        backends: corrected calls, by the name of the attention backend.
        cached: calls that a cache answered, by number of latent frames. The cache got its answers from corrected calls.
        skipped: forward passes in which the layer was due for correction and its module was not called, by number of
            latent frames and name of the hook that skipped it: ``""`` if it is not known.
        notes: other facts about calls of this module, with the number of calls.
        share: which heads this process computes, if several processes share the layer; this is a report of these heads.
    """

    layer: int
    path: str
    method: str
    calls: Counter[int] = field(default_factory=Counter)
    largest_before: float = 0.0
    largest_after: float = 0.0
    shares: float = 0.0
    untouched: Counter[str] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)
    cached: Counter[int] = field(default_factory=Counter)
    skipped: Counter[tuple[int, str]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    share: str = ""

    @property
    def attended(self) -> float:
        """Share of all token pairs that were attended, 0..1: the mean over corrected calls, 1 if there were none."""
        return self.shares / sum(self.calls.values()) if self.calls else 1.0

    def has_computed(self, frames: int) -> bool:
        """Whether a call of this length was corrected, or had nothing to correct in the heads of this process."""
        ran = f"{frames} latent frames, {UNCHANGED}" in self.untouched
        return bool(self.calls[frames]) or (bool(self.share) and ran)

    def note_untouched(self, frames: int) -> None:
        """Count one call that ran unchanged."""
        why = "which the profile leaves alone" if self.method == "none" else UNCHANGED
        self.untouched[f"{frames} latent frames, {why}"] += 1

    def note_corrected(self, frames: int, largest_position: float, density: float, backend: str) -> None:
        """Count one corrected call."""
        self.calls[frames] += 1
        self.backends[backend] += 1
        self.largest_before = max(self.largest_before, frames - 1)
        self.largest_after = max(self.largest_after, largest_position)
        self.shares += density


@dataclass
class TransformerReport:
    """What happened in one transformer.

    Attributes:
        layers: one entry per attention module, in order.
        forwards: finished forward passes, by number of latent frames. A batch whose samples differ in size counts once
            for each of its sizes. Of a model that is compiled as a whole, only those in which a layer was called.
        due: those of them in which a layer was due for correction.
        failed: forward passes that ended in an error.
        is_compiled: whether compiled code ran. It does not count the calls of layers that the profile leaves alone.
        notes: other facts about forward passes, with the number of passes.
    """

    layers: list[LayerReport] = field(default_factory=list)
    forwards: Counter[int] = field(default_factory=Counter)
    due: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    is_compiled: bool = False
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def has_run(self) -> bool:
        """Whether anything was noted."""
        noted = any(layer.calls or layer.untouched or layer.cached or layer.skipped for layer in self.layers)
        return bool(noted or self.forwards or self.failed or self.notes)

    def lines(self) -> list[str]:
        """The lines of a printed report."""
        counts = [f"{count} at {frames} latent frames" for frames, count in sorted(self.forwards.items())]
        counts += [f"{self.failed} ended in an error"] if self.failed else []
        lines = [f"forward passes: {', '.join(counts)}"] if counts else []
        if done := [layer for layer in self.layers if layer.calls]:
            lines += _table(done)
        alone = [layer for layer in self.layers if layer.method == "none"]
        if self.is_compiled and alone:
            lines.append(f"not counted: calls of {_named(alone)} in compiled code, which the profile leaves alone")
        notes = [f"note: {note} ({_passes(count)})" for note, count in self.notes.items()]
        return [*lines, *self._skipped(), *notes]

    def _skipped(self) -> list[str]:
        """One line for all layers that were skipped alike."""
        alike: dict[tuple[int, str, int], list[LayerReport]] = {}
        for layer in self.layers:
            for (frames, by), count in layer.skipped.items():
                alike.setdefault((frames, by, count), []).append(layer)
        lines = []
        for (frames, by, count), layers in sorted(alike.items(), key=lambda item: item[0][:2]):
            ran = f"{_passes(self.due[frames])} at {frames} latent frames"
            if by:
                lines.append(f"skipped by {by}: {_named(layers)}, in {count} of {ran}")
            else:
                lines.append(
                    f"WARNING: {_named(layers)} {'was' if len(layers) == 1 else 'were'} due for correction in {ran}, "
                    f"and made no call in {count} of them: skipped by a cache or layer skip that the adapter does not "
                    "describe, or the attention was called as a method of the module, where freeloc cannot intercept it"
                )
        return lines


@dataclass
class NoiseReport:
    """Which videos started from the initial noise of a method that has one of its own.

    Attributes:
        method: the method whose noise it is.
        window: trained length in latent frames. Up to it the noise is that of the pipeline, and then it repeats.
        by_caller: whether the caller prepares it (``noise_prepared=True``), so that nothing is known here.
        prepared: calls of ``prepare_latents`` whose noise was prepared, by number of latent frames.
        given: those of them in which the pipeline was called with ``latents``, and these were prepared.
        within: calls whose noise was left as it was, since the video is not longer than the window.
    """

    method: str
    window: int
    by_caller: bool = False
    prepared: Counter[int] = field(default_factory=Counter)
    given: Counter[int] = field(default_factory=Counter)
    within: Counter[int] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """The lines of a printed report."""
        if self.by_caller:
            return [f"initial noise of {self.method}: prepared by your code, as noise_prepared=True says"]
        lines = [
            f"prepared for {frames} latent frames, in windows of {self.window} ({_times(count)}"
            f"{f', of which {given} from latents that were given' if (given := self.given[frames]) else ''})"
            for frames, count in sorted(self.prepared.items())
        ]
        lines += [
            f"left as it was for {frames} latent frames, which are not longer than in training ({_times(count)})"
            for frames, count in sorted(self.within.items())
        ]
        return [f"initial noise of {self.method}: {line}" for line in lines or ["not prepared yet"]]


def _times(count: int) -> str:
    return f"{count} time{'' if count == 1 else 's'}"


@dataclass
class Report:
    """What ran since the patch was made. Printing it shows a table, and a line for everything that was not corrected.

    Attributes:
        profile: name of the model in the profile, and the kind of its provenance.
        models: for each transformer of the pipeline, in order, what happened in it.
        left: what `leave_uncorrected` of `freeloc.patch` names, with its class.
        noise: what the initial noise was, if a method has one of its own.
    """

    profile: str
    models: list[TransformerReport]
    left: list[str] = field(default_factory=list)
    noise: NoiseReport | None = None

    @property
    def transformers(self) -> list[list[LayerReport]]:
        """For each transformer of the pipeline, in order, one entry per attention module, in order."""
        return [model.layers for model in self.models]

    @property
    def layers(self) -> list[LayerReport]:
        """The entries of all transformers."""
        return [layer for model in self.models for layer in model.layers]

    @property
    def corrected_calls(self) -> int:
        """Attention calls that were corrected by a plan."""
        return sum(sum(layer.calls.values()) for layer in self.layers)

    @property
    def untouched_calls(self) -> int:
        """Attention calls that ran unchanged."""
        return sum(sum(layer.untouched.values()) for layer in self.layers)

    def __str__(self) -> str:
        lines = [f"{self._summary()} (profile: {self.profile})"]
        for number, model in enumerate(self.models, start=1):
            if found := model.lines():
                lines += [f"transformer {number} of {len(self.models)}"] if len(self.models) > 1 else []
                lines += found
        cached = sum((layer.cached for layer in self.layers), Counter[int]())
        lines += [
            f"answered from a cache: {calls} calls, {frames} latent frames, with what corrected calls computed before"
            for frames, calls in sorted(cached.items())
        ]
        reasons = sum((layer.untouched for layer in self.layers), Counter[str]())
        lines += [f"not corrected: {calls} calls, {reason}" for reason, calls in reasons.items()]
        lines += self.noise.lines() if self.noise else []
        lines += [f"left uncorrected, as asked: {', '.join(self.left)}"] if self.left else []
        shares = sorted({layer.share for layer in self.layers if layer.share})
        lines += [f"shared by several processes: {share}" for share in shares]
        notes = sum((layer.notes for layer in self.layers), Counter[str]())
        lines += [f"note: {note} ({calls} calls)" for note, calls in notes.items()]
        if not any(model.has_run for model in self.models):
            alone = all(layer.method == "none" for layer in self.layers)
            why = ", or only in compiled code: the profile leaves every layer alone" if alone else ""
            lines.append(f"the patched model has not run yet{why}")
        return "\n".join(lines)

    def _summary(self) -> str:
        corrected, untouched = self.corrected_calls, self.untouched_calls
        if not corrected and any(layer.skipped for layer in self.layers):
            return "freeloc: NOTHING WAS CORRECTED: no layer that was due for correction made a call"
        if not corrected and any(NO_CALL in model.notes for model in self.models):
            return "freeloc: NOTHING WAS CORRECTED: no attention module was called"
        if not corrected and any(model.failed for model in self.models) and not any(m.forwards for m in self.models):
            return "freeloc: NOTHING WAS CORRECTED: every forward pass ended in an error"
        return f"freeloc: {corrected} attention calls corrected, {untouched} left as they are"


NO_CALL = "no attention module was called, so that the number of latent frames is not known"
"""The note on forward passes of a model whose attention modules get the token grid."""

EARLY = (
    "left out before any call of the layer at this length was corrected: a cache of another library that did this was "
    "filled before the patch, so its answer is not corrected, and it must be reset after the patch"
)
"""The note on calls that an unknown cache may have answered with what is not corrected."""

AGAIN = "run again in backward, by gradient checkpointing or compiled code"
"""The note on calls and forward passes that autograd has run again."""


def _named(layers: Sequence[LayerReport]) -> str:
    """Layers by number and path."""
    paths = [layer.path for layer in layers]
    if len(layers) == 1:
        return f"layer {layers[0].layer} ({paths[0]})"
    return f"{len(layers)} layers ({', '.join(paths) if len(paths) <= 3 else f'{paths[0]} ... {paths[-1]}'})"


def _passes(count: int) -> str:
    return f"{count} forward pass{'' if count == 1 else 'es'}"


def _table(layers: list[LayerReport]) -> list[str]:
    width = max(8, *(len(layer.method) for layer in layers))
    lines = [f"layer  {'method':{width}}  calls  latent frames  largest position     attended  backend    module"]
    for layer in layers:
        frames = ", ".join(str(count) for count in sorted(layer.calls))
        lines.append(
            f"{layer.layer:5}  {layer.method:{width}}  {sum(layer.calls.values()):5}  {frames:>13}  "
            f"{layer.largest_before:6g} -> {layer.largest_after:<6g}  {layer.attended:11.1%}  "
            f"{', '.join(sorted(layer.backends)):9}  {layer.path}"
        )
    return lines
