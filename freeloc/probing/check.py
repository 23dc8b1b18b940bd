"""check: the denoising losses of whole profiles on clips, to test on other clips what a probe chose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.spec import Adapter
from freeloc.discovery import transformers_of
from freeloc.errors import ProbeError
from freeloc.probing.cells import Cell, Cells
from freeloc.probing.depths.loss import MEASURES, Loss
from freeloc.probing.statistics import mean_and_error
from freeloc.probing.subject import Subject, require_whole
from freeloc.profile.matching import require_fit
from freeloc.profile.planning import layer_plans
from freeloc.profile.schema import Profile


@dataclass(frozen=True)
class Check:
    """Losses of several profiles on the same clips with the same noise. Printing it shows differences to the first.

    Args:
        losses: (2, clips) by name: means over noise levels, over whole frames and over moving places.
    """

    losses: Mapping[str, Tensor]

    def __str__(self) -> str:
        first, *others = self.losses
        base = self.losses[first]
        lines = [f"{'':24} {'whole frames':>22} {'moving places':>22}   {base.shape[1]} clips"]
        lines.append(f"{first:24} " + " ".join(f"{value:22.4f}" for value in base.mean(dim=1).tolist()))
        for name in others:
            mean, error = mean_and_error(self.losses[name] - base)
            both = zip(mean.tolist(), error.tolist(), strict=True)
            lines.append(f"{f'{name} minus {first}':24} " + " ".join(f"{m:+.5f} ± {e:.5f}".rjust(22) for m, e in both))
        return "\n".join(lines)


def check(
    model_or_pipeline: object,
    run: Callable[..., Any],
    depth: Loss,
    profiles: Mapping[str, Profile],
    *,
    prompts: Sequence[Any] = (),
    adapter: Adapter | None = None,
    seed: int = 0,
) -> Check:
    """Measure the denoising loss of whole profiles on clips, all with the same noise.

    A probe changes one layer at a time, and chooses among many. So what it chose has to be tested as a whole, on clips
    that it has not seen: against VRPR everywhere, for example.

    >>> import torch, freeloc
    >>> from freeloc.tiny.model import load_transformer
    >>> from freeloc.tiny.synthetic import clips, prompt_embeds, to_latents
    >>> transformer, tiny = load_transformer(), freeloc.load_profile("tiny-wan")
    >>> latents = to_latents(clips(["red ring fast"] * 2, 22, torch.Generator().manual_seed(0)))
    >>> def run():
    ...     noise = torch.randn(1, 3, 22, 20, 28, generator=torch.Generator().manual_seed(0))
    ...     with torch.no_grad():
    ...         transformer(noise, torch.full((1,), 1000.0), prompt_embeds(["red ring fast"]))
    >>> vrpr = tiny.model_copy(update={"layers": {"vrpr": [*range(8)]}})
    >>> found = check(transformer, run, Loss(latents, levels=(0.5,)), {"vrpr": vrpr, "mine": tiny})
    >>> found.losses["mine"].shape
    torch.Size([2, 2])

    Args:
        model_or_pipeline, run, prompts, adapter, seed: as in `freeloc.probe`.
        depth: the clips, noise levels, objective and argument; what it would compare is not used.
        profiles: profiles by a name, at least one. Differences are taken to the first.

    Raises:
        ProbeError: if there is no profile, or as `freeloc.probe`.
        ProfileError: if a profile does not fit the model.
    """
    if not profiles:
        raise ProbeError("expected at least one profile to check, found none")
    found = transformers_of(model_or_pipeline, adapter)
    for profile in profiles.values():
        require_fit(profile, found)
    require_whole(found)
    subject = Subject(model_or_pipeline, found, run, prompts, next(iter(profiles.values())), seed)
    depth.settings(subject)
    subject.cells = Cells(None, {})
    call = lru_cache(maxsize=1)(partial(depth.first_call, subject))
    places = {f"check/{name}/{clip}": (name, clip) for name in profiles for clip in range(len(depth.clips))}

    def losses(place: str) -> Cell:
        name, clip = places[place]
        return depth.losses_under(subject, call, clip, partial(layer_plans, profiles[name]))

    cells = subject.measure(list(places), losses, "check")
    return Check(
        {
            name: torch.stack(
                [
                    torch.stack([cells[f"check/{name}/{clip}"][measure].mean() for clip in range(len(depth.clips))])
                    for measure in MEASURES
                ]
            )
            for name in profiles
        }
    )
