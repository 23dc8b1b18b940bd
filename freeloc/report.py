"""What a patch did: which attention calls it corrected and how, and which it did not correct and why."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class LayerReport:
    """What happened in one attention module.

    Attributes:
        layer: number of the layer in the profile.
        path: path of the module in the model.
        method: the policy or function that made the plan.
        calls: corrected calls, by number of latent frames. A batch whose samples differ in size counts per sample.
        largest_before: largest relative position before the correction, in latent frames.
        largest_after: and after it.
        shares: share of all token pairs that were attended, 0..1, summed over corrected calls.
        untouched: calls that ran unchanged, by reason. In a compiled model, layers that the profile does not
            correct are not counted.
        backends: corrected calls, by the name of the attention backend.
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
    share: str = ""

    @property
    def attended(self) -> float:
        """Share of all token pairs that were attended, 0..1: the mean over corrected calls, 1 if there were none."""
        return self.shares / sum(self.calls.values()) if self.calls else 1.0

    def note_untouched(self, frames: int) -> None:
        """Count one call that ran unchanged."""
        why = "which the profile leaves alone" if self.method == "none" else "for which the plan changes nothing"
        self.untouched[f"{frames} latent frames, {why}"] += 1

    def note_corrected(self, frames: int, largest_position: float, density: float, backend: str) -> None:
        """Count one corrected call."""
        self.calls[frames] += 1
        self.backends[backend] += 1
        self.largest_before = max(self.largest_before, frames - 1)
        self.largest_after = max(self.largest_after, largest_position)
        self.shares += density


@dataclass
class Report:
    """What ran since the patch was made. Printing it shows a table.

    Attributes:
        profile: name of the model in the profile, and the kind of its provenance.
        transformers: for each transformer of the pipeline, in order, one entry per attention module, in order.
        left: what `leave_uncorrected` of `freeloc.patch` names, with its class.
    """

    profile: str
    transformers: list[list[LayerReport]]
    left: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[LayerReport]:
        """The entries of all transformers."""
        return [layer for layers in self.transformers for layer in layers]

    @property
    def corrected_calls(self) -> int:
        """Attention calls that were corrected by a plan."""
        return sum(sum(layer.calls.values()) for layer in self.layers)

    @property
    def untouched_calls(self) -> int:
        """Attention calls that ran unchanged."""
        return sum(sum(layer.untouched.values()) for layer in self.layers)

    def __str__(self) -> str:
        lines = [
            f"freeloc: {self.corrected_calls} attention calls corrected, {self.untouched_calls} left as they are "
            f"(profile: {self.profile})"
        ]
        for number, layers in enumerate(self.transformers, start=1):
            if done := [layer for layer in layers if layer.calls]:
                lines += [f"transformer {number} of {len(self.transformers)}"] if len(self.transformers) > 1 else []
                lines += _table(done)
        reasons = sum((layer.untouched for layer in self.layers), Counter[str]())
        lines += [f"not corrected: {calls} calls, {reason}" for reason, calls in reasons.items()]
        lines += [f"left uncorrected, as asked: {', '.join(self.left)}"] if self.left else []
        shares = sorted({layer.share for layer in self.layers if layer.share})
        lines += [f"shared by several processes: {share}" for share in shares]
        if not self.corrected_calls and not reasons:
            lines.append("the patched model has not run yet")
        return "\n".join(lines)


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
