"""tune: searches the profile of a model by its denoising loss on real long clips, and checks it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from freeloc.adapter.spec import Adapter
from freeloc.discovery import transformers_of
from freeloc.errors import ProbeError
from freeloc.probing.denoising import Objective
from freeloc.probing.origin import as_json_values
from freeloc.probing.subject import fingerprint, require_whole
from freeloc.profile.files import load_profile
from freeloc.profile.matching import fitting_profile, require_fit
from freeloc.profile.schema import Profile
from freeloc.tuning.candidates import Candidate, candidates_of
from freeloc.tuning.clock import Clock
from freeloc.tuning.defaults import UNIFORM
from freeloc.tuning.progress import Progress
from freeloc.tuning.result import Tuned
from freeloc.tuning.runner import Runner
from freeloc.tuning.session import OwnClips, Session
from freeloc.tuning.units import require_clips, require_times
from freeloc.tuning.work import Work
from freeloc.untrusted import brief

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)
"""Noise levels, those of the depth ``loss``."""


def tune(
    model_or_pipeline: object,
    clips: Sequence[Tensor] | Tensor | None,
    run: Callable[[Any, int], Any],
    *,
    minutes: float = 30.0,
    prompts: Sequence[Any] = ("",),
    times: Sequence[int] = (2, 4),
    levels: Sequence[float] = LEVELS,
    candidates: Sequence[Candidate] = UNIFORM,
    alternatives: Sequence[Candidate] | None = None,
    also: Sequence[str | Candidate] = (),
    videos: int = 4,
    places: float = 0.5,
    profile: str | Path | Profile | None = None,
    adapter: Adapter | None = None,
    objective: Objective | None = None,
    argument: str | None = None,
    axes: str | None = None,
    folder: str | Path | None = None,
    run_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    clock: Clock | None = None,
) -> Tuned:
    """Find the policy of each layer that makes long videos of a model best, within a budget of minutes.

    Policies are compared by the denoising loss on one half of the clips, with the same noise for all. What is chosen is
    checked on the other half, and on sampled videos. docs/how-to/tune-your-model.md explains each step.

    >>> import torch, freeloc
    >>> from freeloc.tiny.model import load_transformer
    >>> from freeloc.tiny.synthetic import PROMPTS, clips, prompt_embeds, to_latents
    >>> transformer, prompts = load_transformer(), PROMPTS[:4]
    >>> real = to_latents(clips(list(prompts), 24, torch.Generator().manual_seed(0)))
    >>> def run(prompt, latent_frames):
    ...     noise = torch.randn(1, 3, latent_frames, 20, 28, generator=torch.Generator().manual_seed(0))
    ...     return transformer(noise, torch.full((1,), 1000.0), prompt_embeds([prompt]))
    >>> some = [Candidate("none"), Candidate("vrpr")]
    >>> found = freeloc.tune(
    ...     transformer, real, run, prompts=prompts, levels=(0.5,), videos=0, candidates=some, alternatives=[]
    ... )
    >>> found.profile.provenance.kind
    'probed'

    Args:
        model_or_pipeline: a transformer, also wrapped, or a pipeline. All transformers of a pipeline get one profile.
        clips: latents of four or more real videos, each one sample of the transformer's input without the batch
            (`freeloc.probing.encode` makes them), of 4 times the trained length, or of what there is. None: samples of
            the model itself, one for each prompt, corrected by ``vrpr``; they show less, and the profile says so.
        run: (prompt, latent frames) -> video of that length, (frames, height, width, 3) in 0..1, or a pipeline's
            output. It must do the same each time, so it must seed its noise. With ``videos=0`` it need only call the
            transformer.
        minutes: the budget. What was found until then is checked and returned. A measurement is never cut off, so the
            end may be late by one.
        prompts: one for all clips, or one for each.
        times: lengths to tune for, in trained lengths; no longer than the clips.
        levels: noise levels, above 0 (clean) and up to 1 (noise).
        candidates: what is tried on all layers, the simplest first.
        alternatives: what is tried on one layer at a time, the simplest first; by default changes of the best
            candidate on all layers (`freeloc.tuning.defaults.on_one_layer`).
        also: more methods by name (``freeloc methods``), or candidates, tried on all layers and on single ones.
        videos: number of prompts for which whole videos are sampled at the end; 0 leaves this check out.
        places: weight of moving and detailed places in the loss (`freeloc.probing.places.motion_weight`), 0 to 1.
        profile: the source of the trained length and the settings of methods, as in `freeloc.patch`.
        adapter: describes the model; by default found from its class.
        objective, argument, axes: as in `freeloc.probing.Loss`.
        folder: folder for the results, and for each measurement as soon as it is done. An interrupted run goes on from
            there, also with more minutes. Several processes, started with `torchrun`, share the work: each runs a model
            of its own.
        run_settings: what `run` depends on besides prompt and length, as JSON values. A folder with others is refused.
        seed: random seed of the noise, of the order, and of the halves.
        clock: for tests.

    Returns:
        A `Tuned`: the profile, the measurements, and a report.

    Raises:
        ProbeError: if there are too few clips, or they are not longer than the trained length; if the budget is too
            small for the first stage; if the run is different each time; if the folder holds another tuning.
        RegistryError, ProfileError: if there is no such method, or settings do not fit it.
        ProfileError, AdapterError, PatchError: as `freeloc.patch`.
    """
    found = transformers_of(model_or_pipeline, adapter)
    loaded = load_profile(profile) if profile is not None else fitting_profile(*found[0], any_layers=True)
    require_fit(loaded, found)
    require_whole(found)
    _require(prompts, minutes, levels, places)
    require_times(times)
    more = candidates_of(also)
    given = list(clips) if clips is not None else None
    require_clips(len(given) if given is not None else len(prompts), prompts, own=given is None)
    where = Path(folder) if folder is not None else None
    base = loaded.model_copy(update={"policies": {}, "heads": {}, "evidence": None})
    runner = Runner(model_or_pipeline, found, run, prompts, given or [], base, objective, argument, axes, seed, where)
    recorded = {
        "model": "-".join(fingerprint(transformer)[: 64 // len(found)] for transformer, _ in found),
        "prompts": [str(prompt) for prompt in prompts],
        "clips": None if given is None else [f"{float(clip.double().abs().sum()):.9g}" for clip in given],
        "seed": seed,
        "objective": runner.predicts.numbers(LEVELS),
        "argument": argument,
        "axes": axes,
        "run": as_json_values(run_settings or {}),
        "profile": base.model_dump(mode="json", include={"model", "vrpr", "tsa"}),
    }
    work = Work(where and where / "pieces", recorded, runner.measure, clock or Clock(minutes, where))
    runner.folder = where and where / "pieces"
    if given is None:
        runner.clips = OwnClips(runner, work, max(times))
    if not work.leads:
        work.follow()
        return Tuned.load(where or Path())
    session = Session(
        runner=runner,
        work=work,
        progress=Progress(work.clock, shown=True),
        candidates=[*candidates, *more],
        alternatives=alternatives,
        also=more,
        times=times,
        levels=levels,
        videos=videos,
        places=places,
        recorded=recorded,
    )
    try:
        session.run()
    finally:
        session.progress.close()
    result = Tuned.of(session)
    if where is not None:
        result.save(where)
    work.finish()
    return result


def _require(prompts: Sequence[Any], minutes: float, levels: Sequence[float], places: float) -> None:
    """Refuse arguments that mean nothing."""
    if isinstance(prompts, str) or not len(prompts):
        raise ProbeError(f"expected a list of prompts, found {brief(prompts)}: give prompts=[...]")
    if not minutes > 0:
        raise ProbeError(f"expected a budget above 0 minutes, found {minutes}")
    if not levels or not all(0 < level <= 1 for level in levels):
        raise ProbeError(f"expected noise levels above 0 and up to 1, found {list(levels)}")
    if not 0 <= places <= 1:
        raise ProbeError(f"expected places from 0 to 1, the weight of moving places, found {places}")
