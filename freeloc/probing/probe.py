"""probe: measures how sensitive each layer of a model is to positions and to context beyond the trained length."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from freeloc.adapter.spec import Adapter
from freeloc.discovery import transformers_of
from freeloc.errors import ProbeError
from freeloc.probing.cells import Cells
from freeloc.probing.depths.base import Depth
from freeloc.probing.depths.lookup import find_depth
from freeloc.probing.facts import TABLE_NAME, ProbeFacts
from freeloc.probing.origin import as_json_values, command_line, versions_used
from freeloc.probing.sensitivity import Sensitivity
from freeloc.probing.subject import Subject, fingerprint, require_whole
from freeloc.probing.table import Table
from freeloc.profile.files import load_profile
from freeloc.profile.matching import fitting_profile, require_fit
from freeloc.profile.schema import Profile
from freeloc.untrusted import brief


def probe(
    model_or_pipeline: object,
    run: Callable[..., Any],
    depth: str | Depth = "local",
    *,
    prompts: Sequence[Any] = (),
    profile: str | Path | Profile | None = None,
    adapter: Adapter | None = None,
    folder: str | Path | None = None,
    run_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Measure how each layer depends on positions and on context beyond the trained length.

    >>> import torch, freeloc
    >>> from freeloc.tiny.model import load_transformer
    >>> from freeloc.tiny.synthetic import prompt_embeds
    >>> transformer = load_transformer()
    >>> def run(prompt):
    ...     noise = torch.randn(1, 3, 24, 20, 28, generator=torch.Generator().manual_seed(0))
    ...     with torch.no_grad():
    ...         transformer(noise, torch.full((1,), 900.0), prompt_embeds([prompt]))
    >>> found = freeloc.probe(transformer, run, prompts=["red ring fast"], profile="tiny-wan")
    >>> found.table("local.logits").over("layers", "heads").values.shape
    torch.Size([8, 4])

    Args:
        model_or_pipeline: a transformer, also wrapped, or a pipeline. All transformers of a pipeline are probed as one.
        run: generates a long video, or calls the transformer. It must do the same each time for one prompt, so it must
            seed its noise. Depth ``video`` requires that it returns the video, and two prompts or more.
        depth: name of a registered depth, ``"local"``, ``"output"``, ``"video"`` or a plugin's; or a `Depth` object
            with its settings: `Local`, `Output`, `Loss`, `Video` ... ``Loss`` requires clips.
        prompts: `run` is called once with each; by default once without a prompt.
        profile: the source of the trained length and the settings of methods, as in `freeloc.patch`.
        adapter: describes the model; by default found from its class.
        folder: folder in which each part of the measurements is saved as soon as it is done. An interrupted probe
            continues from there. Several processes, started with `torchrun`, share the work: each runs a model of its
            own.
        run_settings: what `run` depends on besides the prompt (frames, size, steps ...), as JSON values. They are saved
            with the measurements. A folder with other settings is refused.
        seed: random seed of freeloc's own samples: sampled tokens, noise of clips.

    Raises:
        ProbeError: if there is no such depth, or it lacks an argument; if the run does not call the model, is different
            each time, or is not longer than the trained length; if the folder holds another probe; if several processes
            share the model.
        ProfileError, AdapterError, PatchError: as `freeloc.patch`.
    """
    chosen = find_depth(depth)
    found = transformers_of(model_or_pipeline, adapter)
    loaded = load_profile(profile) if profile is not None else fitting_profile(*found[0], any_layers=True)
    require_fit(loaded, found)
    require_whole(found)
    if isinstance(prompts, str):
        raise ProbeError(f"expected a list of prompts, found one text: give prompts=[{brief(prompts)}]")
    labels = [str(prompt) for prompt in prompts]
    if len(set(labels)) < len(labels):
        raise ProbeError("expected each prompt once, found one twice")
    weights = "-".join(fingerprint(transformer)[: 64 // len(found)] for transformer, _ in found)
    subject = Subject(model_or_pipeline, found, run, prompts, loaded, seed)
    settings = chosen.settings(subject)
    recorded = {"model": weights, "prompts": labels, "seed": seed, chosen.name: settings}
    decides = {"model", "vrpr", "tsa"} | ({"policies"} if loaded.policies else set())
    recorded["profile"] = loaded.model_dump(mode="json", include=decides)
    of_run = {"run": as_json_values(run_settings)} if run_settings else {}
    recorded |= of_run
    subject.cells = Cells(Path(folder) / chosen.name if folder else None, recorded)
    tables = _named(chosen, chosen.measure(subject))
    facts = ProbeFacts(
        profile=loaded,
        fingerprint=weights,
        latent_frames=sorted(subject.latent_frames),
        prompts=labels,
        seed=seed,
        settings={chosen.name: settings | of_run},
        versions=versions_used(),
        command=command_line(),
    )
    return Sensitivity(tables, facts)


def _named(depth: Depth, tables: dict[str, Table]) -> dict[str, Table]:
    """Check that the names of a depth's tables begin with its name: files with other names cannot be read."""
    for name in tables:
        if not TABLE_NAME.fullmatch(name) or not name.startswith(f"{depth.name}."):
            raise ProbeError(
                f"expected depth {depth.name} to name its tables '{depth.name}.measure', with letters, digits, spaces, "
                f"'_' and '-', found {brief(name)}"
            )
    return tables
