"""The comparisons of depth ``loss``: a policy on one layer or head, while all others have the base policy."""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from freeloc.profile.schema import POLICIES, Profile

COMPARED: tuple[tuple[str, str], ...] = tuple(("vrpr", policy) for policy in POLICIES if policy != "vrpr")
"""(policy of all other layers, policy of one layer): each other policy among VRPR."""

WITHOUT_ROPE: tuple[tuple[str, str], ...] = (("none", "tsa"),)
"""The same for a model without RoPE: TSA on one layer, no correction elsewhere."""


class Setting(NamedTuple):
    """One measurement: a clip, the policy of all layers, and another policy of one layer or head."""

    clip: int
    rest: str
    changed: str
    layer: int
    head: int | None

    @property
    def cell(self) -> str:
        """Name of the cell that it is saved in."""
        of_head = "" if self.head is None else f".{self.head}"
        where = "all" if self.rest == self.changed else f"{self.layer}{of_head}"
        return f"loss/{self.clip:03}/{_of_file(self.rest)}/{_of_file(self.changed)}/{where}"

    def profile(self, profile: Profile) -> Profile:
        """The profile with these policies on its layers and heads."""
        every = range(profile.model.layers)
        if self.head is None:
            others = [layer for layer in every if layer != self.layer and self.rest != self.changed]
            layers = {self.rest: others, self.changed: [layer for layer in every if layer not in others]}
            return profile.model_copy(update={"layers": layers, "heads": {}})
        heads = {str(self.layer): {self.changed: [self.head]}}
        return profile.model_copy(update={"layers": {self.rest: [*every]}, "heads": heads})


def settings_of(
    pairs: Sequence[tuple[str, str]], clips: int, layers: int, heads: Sequence[int | None]
) -> list[Setting]:
    """All measurements of these (rest, policy) pairs; first those in which no layer differs from the rest.

    >>> [setting.cell for setting in settings_of([("vrpr", "tsa")], clips=1, layers=2, heads=[None])]
    ['loss/000/vrpr/vrpr/all', 'loss/000/vrpr/tsa/0', 'loss/000/vrpr/tsa/1']
    """
    uniform = dict.fromkeys((rest, rest) for rest, _ in pairs)
    return [
        Setting(clip, rest, changed, layer, head)
        for clip in range(clips)
        for rest, changed in [*uniform, *pairs]
        for layer in (range(layers) if rest != changed else [0])
        for head in (heads if rest != changed else [None])
    ]


def policies_of(pairs: Sequence[tuple[str, str]], order: Sequence[str] = POLICIES) -> list[str]:
    """All policies in these pairs; those in `order` first.

    >>> policies_of([("vrpr", "sliding-window"), ("vrpr", "none")])
    ['none', 'vrpr', 'sliding-window']
    """
    used = dict.fromkeys(policy for pair in pairs for policy in pair)
    return [*(policy for policy in order if policy in used), *(policy for policy in used if policy not in order)]


def _of_file(policy: str) -> str:
    """A policy's name, escaped as one part of a path."""
    return quote(policy, safe="+").replace(".", "%2E")
