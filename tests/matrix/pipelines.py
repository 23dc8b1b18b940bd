"""Pipelines.

Whole runs of a small WanPipeline of diffusers, with guidance: several pipelines, callbacks, errors, guiders, caches.
"""

import contextlib
from typing import Any

from torch import Tensor

import freeloc

from .cell import LONG, ORDERS, Case, Cell, Exact, Refused, difference

WAN = ("wan",)
STEPS = 4


def pipeline(model: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, case: Case, batch: int = 1, **options: Any) -> Tensor:
    given = case.inputs(batch=batch)
    text = given["encoder_hidden_states"]
    size = {"num_frames": 4 * LONG - 3, "height": 32, "width": 48, "num_inference_steps": STEPS}
    call = {"prompt_embeds": text, "negative_prompt_embeds": -text, "latents": given["hidden_states"]}
    return pipe(**call, **size, output_type="latent", **options).frames


def by_oracle(case: Case, prepare: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Latents without a correction, and of the oracle."""
    found = []
    for is_corrected in (False, True):
        twin = case.new_model()
        with case.oracle(twin) if is_corrected else contextlib.nullcontext():
            pipe = pipeline(twin)
            if prepare is not None:
                prepare(pipe)
            found.append(generate(pipe, case, **options))
    return found[0], found[1]


def compared(case: Case, found: Tensor, prepare: Any = None, **options: Any) -> Exact:
    plain, expected = by_oracle(case, prepare, **options)
    return Exact(difference(found, expected), difference(plain, expected))


def of_batch(batch: int) -> Any:
    def body(case: Case) -> Exact:
        pipe = pipeline(case.model)
        with freeloc.patch(pipe, case.profile):
            found = generate(pipe, case, batch)
        return compared(case, found, batch=batch)

    return body


def with_cache(config: Any) -> Any:
    """`enable_cache` of the transformer: the pipeline tells the cache its context and its steps."""

    def prepare(pipe: Any) -> None:
        pipe.transformer.enable_cache(config(pipe))

    def body(case: Case) -> Exact:
        pipe = pipeline(case.model)
        patch = freeloc.patch(pipe, case.profile) if case.order == "after" else None
        prepare(pipe)
        with patch or freeloc.patch(pipe, case.profile) as patch:
            found = generate(pipe, case)
            report = patch.report()
            assert sum(sum(layer.skipped.values()) + sum(layer.cached.values()) for layer in report.layers)
        return compared(case, found, prepare)

    return body


def first_block(pipe: Any) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=10.0)


def pyramid(pipe: Any) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe.current_timestep
    )


def shared(case: Case) -> Exact:
    """A second pipeline with the same transformer runs under the patch of the first."""
    first, second = pipeline(case.model), pipeline(case.model)
    with freeloc.patch(first, case.profile):
        found = generate(second, case)
    return compared(case, found)


def patched_twice(case: Case) -> Exact:
    """A second patch of a transformer that two pipelines share."""
    first, second = pipeline(case.model), pipeline(case.model)
    with freeloc.patch(first, case.profile), freeloc.patch(second, case.profile):
        return Exact(0.0, 0.0)


def callback_that_patches(case: Case) -> Exact:
    """A callback removes the patch after the first step, and patches again after the second."""
    pipe, oracle = pipeline(case.model), pipeline(case.new_model())
    patches = [freeloc.patch(pipe, case.profile)]

    def on_step(running: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            patches[-1].remove()
        elif step == 1:
            patches.append(freeloc.patch(pipe, case.profile))
        return given

    found = generate(pipe, case, callback_on_step_end=on_step)
    patches[-1].remove()
    stack = contextlib.ExitStack()
    stack.enter_context(case.oracle(oracle.transformer))

    def by_turns(running: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            stack.close()
        elif step == 1:
            stack.enter_context(case.oracle(oracle.transformer))
        return given

    expected = generate(oracle, case, callback_on_step_end=by_turns)
    stack.close()
    plain = generate(pipe, case)
    return Exact(difference(found, expected), difference(plain, expected))


def callback_that_raises(case: Case) -> Exact:
    """A run that the user ends by an error; then another run."""
    pipe = pipeline(case.model)

    def stop(running: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with freeloc.patch(pipe, case.profile):
        with contextlib.suppress(KeyboardInterrupt):
            generate(pipe, case, callback_on_step_end=stop)
        found = generate(pipe, case)
    return compared(case, found)


def cache_after_removal(case: Case) -> Exact:
    """The patch is removed from a pipeline with a cache: the next run is the plain one, under the cache."""
    pipe = pipeline(case.model)
    pipe.transformer.enable_cache(first_block(pipe))
    with freeloc.patch(pipe, case.profile):
        corrected = generate(pipe, case)
    found = generate(pipe, case)
    twin = pipeline(case.new_model())
    twin.transformer.enable_cache(first_block(twin))
    plain = generate(twin, case)
    return Exact(difference(found, plain), difference(corrected, plain), "compared with the plain run")


def offloaded(case: Case) -> Exact:
    """`enable_model_cpu_offload` needs an accelerator; its hook is that of accelerate, on each component."""
    from accelerate import cpu_offload_with_hook

    pipe = pipeline(case.model)
    patch = freeloc.patch(pipe, case.profile) if case.order == "after" else None
    cpu_offload_with_hook(pipe.transformer, execution_device="cpu")
    with patch or freeloc.patch(pipe, case.profile):
        found = generate(pipe, case)
    return compared(case, found)


def smoothed_energy(case: Case) -> Exact:
    """Hooks of smoothed energy guidance, on to_q of one layer, as of diffusers' guider."""
    from diffusers.hooks.smoothed_energy_guidance_utils import (
        SmoothedEnergyGuidanceConfig,
        _apply_smoothed_energy_guidance_hook,
    )

    def apply(model: Any) -> None:
        config = SmoothedEnergyGuidanceConfig(indices=[1], fqn="blocks")
        _apply_smoothed_energy_guidance_hook(model, config, 1.0, name="seg")

    twin = case.new_model()
    apply(twin)
    plain, expected = case.of(twin)
    patch = None if case.order == "before" else case.patch()
    apply(case.model)
    with patch or case.patch():
        return Exact(difference(case.run(), expected), difference(plain, expected))


MANY: dict[str, Any] = {"tolerance": 1e-4}
"""Four steps with guidance."""

CELLS = [
    Cell("WanPipeline with guidance", of_batch(1), WAN, quick=WAN, **MANY),
    Cell("three prompts with guidance", of_batch(3), WAN, **MANY),
    Cell("enable_cache(FirstBlockCacheConfig)", with_cache(first_block), WAN, ORDERS, **MANY),
    Cell("enable_cache(PyramidAttentionBroadcastConfig)", with_cache(pyramid), WAN, ORDERS, **MANY),
    Cell("a cache stays on when the patch is removed", cache_after_removal, WAN, **MANY),
    Cell("another pipeline with the same transformer", shared, WAN, **MANY),
    Cell(
        "two patches of a transformer of two pipelines",
        patched_twice,
        WAN,
        expects=Refused("PatchError: .*is patched already"),
    ),
    Cell("callback_on_step_end removes the patch, and patches again", callback_that_patches, WAN, **MANY),
    Cell("callback_on_step_end ends the run by KeyboardInterrupt, then another run", callback_that_raises, WAN, **MANY),
    Cell("the hook of enable_model_cpu_offload", offloaded, WAN, ORDERS, **MANY),
    Cell("hooks of smoothed energy guidance", smoothed_energy, WAN, ORDERS),
]
