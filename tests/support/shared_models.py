"""Small models that two processes share, for `two_processes`."""

import contextlib
from dataclasses import replace
from typing import Any

import fastvideo_double
import torch
import torch.distributed as dist
import wan_double
from diffusers import ContextParallelConfig, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models._modeling_parallel import ContextParallelInput as Split
from diffusers.models._modeling_parallel import ContextParallelOutput as Gather
from freeloc_adapters.examples import EXAMPLES, cogvideox, wan
from torch import Tensor, nn

import freeloc
import freeloc.discovery
from freeloc import FramePlan
from freeloc.testing import noise, random_model

GRID = 8, 4, 6
ODD = 9, 3, 5
TEXT = 4
"""Tokens of text: they divide among two processes."""


def make(name: str, text: str = "full", batch: int = 1) -> tuple[Any, dict[str, Any]]:
    """A model and its inputs. The text is full, padded, or of an odd number of tokens."""
    tokens = TEXT + 1 if text == "odd" else TEXT
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    if text == "padded":
        valid[-1, 1:] = False  # not only tokens of the second process
    kind, _, heads = name.partition(" of ")
    if name == "fastvideo":
        model, given = fastvideo_double.model(), fastvideo_double.inputs(*(ODD if text == "odd" else GRID), batch)
    elif name == "wan-original":
        model, given = wan_double.model(), wan_double.inputs(*GRID, batch)
    elif heads:
        model = random_model(lambda: WanTransformer3DModel(**wan.SIZES | {"num_attention_heads": int(heads)}))
        given = wan.inputs(*GRID, batch)
    elif name == "cogvideox":
        sizes = cogvideox.SIZES | {"max_text_seq_length": tokens}
        model, given = cogvideox.cogvideox(sizes), cogvideox.inputs(sizes, *GRID, batch)
    else:
        example = next(example for example in EXAMPLES if example.label == kind)
        model, given = example.model(), example.inputs(*GRID, batch)
    for key, value in list(given.items()):
        if key in ("encoder_hidden_states", "encoder_hidden_states_2", "audio_encoder_hidden_states"):
            given[key] = noise(batch, tokens, value.shape[2])
        elif key in ("encoder_attention_mask", "encoder_attention_mask_2"):
            given[key] = None if text == "no mask" else valid.to(value.dtype)
    if name.startswith("ltx-2"):
        given |= {"timestep": torch.full((1,), 500), "audio_hidden_states": noise(1, 6, 4), "audio_num_frames": 6}
    _by_itself(model)
    return model, given if name in ("wan-original", "fastvideo") else given | {"return_dict": False}


def _by_itself(model: nn.Module) -> None:
    """cache-dit replaces methods of classes, and they expect this attribute of all models in the process."""
    for module in model.modules():
        for owner in (module, getattr(module, "processor", None)):
            if owner is not None:
                owner.__dict__["_cp_config"] = None


BOTH = {"hidden_states": Split(1, 3), "encoder_hidden_states": Split(1, 3)}
JOINT_PLAN = {
    "rope": {0: Split(0, 2, True), 1: Split(0, 2, True)},
    "transformer_blocks.0": BOTH,
    "proj_out": Gather(1, 3),
}
"""How a user of diffusers splits models with joint attention, which have no plan of their own."""


def share(model: Any, library: str, kind: str = "ulysses") -> Any:
    """Split a model over both processes, and return it, or its wrapper."""
    if library == "fastvideo":
        fastvideo_double.share(model)
    elif library == "diffusers":
        degrees: dict[str, Any] = {"ring_degree": 2} if kind == "ring" else {"ulysses_degree": 2}
        degrees |= {"ulysses_anything": True} if kind == "anything" else {}
        plan = JOINT_PLAN if model._cp_plan is None else None
        model.enable_parallelism(config=ContextParallelConfig(**degrees), cp_plan=plan)
    elif library == "cache-dit":
        import cache_dit

        size = {"ring_size": 2} if kind == "ring" else {"ulysses_size": 2}
        config = cache_dit.ParallelismConfig(**size, attention_backend="native")
        cache_dit.enable_cache(model, cache_config=None, parallelism_config=config)
    elif library == "wan":
        wan_double.spread(model)
    elif library == "tensor":
        _split_weights(model)
    elif library == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    elif library == "ddp":
        return nn.parallel.DistributedDataParallel(model.requires_grad_(True), find_unused_parameters=True)
    elif library == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks if hasattr(model, "blocks") else model.transformer_blocks:
            for name in ("self_attn", "attn1"):  # the modules that freeloc hooks are sharded by themselves
                if hasattr(block, name):
                    fully_shard(getattr(block, name))
            fully_shard(block)
        fully_shard(model)
    return model


def _split_weights(model: nn.Module) -> None:
    """Tensor parallelism over the heads of the self-attention of all blocks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    for module in [module for name, module in model.named_modules() if name.endswith(".attn1")]:
        columns = {name: ColwiseParallel() for name in ("to_q", "to_k", "to_v")}
        parallelize_module(module, mesh, columns | {"to_out.0": RowwiseParallel()})
        module.heads //= 2
        for name in ("norm_q", "norm_k"):
            norm = getattr(module, name)
            if isinstance(norm, nn.RMSNorm):
                setattr(module, name, _NormOverAllHeads(norm))


class _NormOverAllHeads(nn.Module):
    """An RMSNorm over the channels of all processes."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.chunk(2)[dist.get_rank()].detach(), norm.weight.requires_grad)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        squares = all_reduce(x.square().mean(-1, keepdim=True)) / 2
        return x * torch.rsqrt(squares + self.eps) * self.weight


def per_head(profile: freeloc.Profile, layer: int, frames: int) -> list[FramePlan]:
    """Plans of which every second head, and the last, is corrected."""
    corrected, rest = freeloc.frame_plan(profile, layer=layer, frames=frames), FramePlan.identity(frames)
    heads = profile.model.heads
    return [corrected if head % 2 or head == heads - 1 else rest for head in range(heads)]


def per_head_profile(profile: freeloc.Profile) -> freeloc.Profile:
    """A profile that gives the heads of every layer different policies."""
    heads = {str(layer): {"none": [0], "tsa": [1]} for layer in range(profile.model.layers)}
    return profile.model_copy(update={"heads": heads})


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def run_case(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Run one case, and note what was measured."""
    does = {
        "sampling": sample,
        "training": train,
        "fresh processors": set_fresh_processors,
        "probing": probe,
        "caching": cache,
    }
    does[case.get("does", "sampling")](case, found)


def sample(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Largest differences: of two processes and one, without and with a patch; and of a patch and none."""
    model, given = make(case["model"], case.get("text", "full"), case.get("batch", 1))
    library, kind = case["library"], case.get("kind", "ulysses")
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    method = case.get("method") or None
    if method == "profile per head":
        profile, method = per_head_profile(profile), None
    method = per_head if method == "heads" else method
    adapter = freeloc.discovery.find_adapter(model)
    if case.get("unknown"):  # as if nobody had named the device meshes of this library
        adapter = replace(adapter, name="unknown", context_parallel=None)

    def run() -> Tensor:
        with torch.no_grad():
            return runs(**given)[0]

    runs = model
    direct = run()
    with freeloc.patch(model, profile, method=method, adapter=adapter):
        one = run()
    found["correction"] = difference(one, direct)
    if case.get("order") == "patch first":
        patch = freeloc.patch(model, profile, method=method, adapter=adapter)
        runs = share(model, library, kind)
    else:
        runs = share(model, library, kind)
        if kind != "ring":
            found["alone"] = difference(run(), direct)
        patch = freeloc.patch(runs, profile, method=method, adapter=adapter)
    if case.get("compiled"):
        runs = torch.compile(runs, backend="eager")
    with patch:
        found["two"] = difference(run(), one)
        found["calls"] = patch.report().corrected_calls
    found["after"] = difference(run(), direct)


def train(case: dict[str, Any], found: dict[str, Any]) -> None:
    """The largest relative difference of a gradient in two processes from that in one."""
    model, given = make(case["model"])
    given["hidden_states"] = given["hidden_states"][:, :, : case.get("frames", GRID[0])]
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    model.requires_grad_(True)

    def gradients(runs: Any) -> dict[str, Tensor]:
        model.zero_grad()
        runs(**given)[0].square().mean().backward()
        summon = getattr(type(runs), "summon_full_params", None)
        with contextlib.nullcontext() if summon is None else summon(runs, with_grads=True):
            named = [(name, weight.grad) for name, weight in model.named_parameters() if ".attn1.to_" in name]
            return {name: _whole(gradient) for name, gradient in named}

    direct = gradients(model)
    with freeloc.patch(model, profile):
        one = gradients(model)
    runs = share(model, case["library"])
    if case.get("checkpoints"):
        model.enable_gradient_checkpointing()
    with freeloc.patch(runs, profile):
        two = gradients(runs)
    if case["library"] == "diffusers":  # each process has the gradients that its part of the tokens gives
        for gradient in two.values():
            dist.all_reduce(gradient)
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    found["correction"] = max(difference(one[name], direct[name]) for name in one) / largest
    found["two"] = max(difference(one[name], two[name]) for name in one) / largest


def _whole(gradient: Tensor) -> Tensor:
    """A gradient, or the gradient of which this process has a part."""
    full = getattr(gradient, "full_tensor", None)
    return gradient.clone() if full is None else full()


def set_fresh_processors(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Give all self-attention of a shared and patched model new processors, which know nothing of the sharing."""
    model, given = make(case["model"])
    share(model, case["library"])
    with freeloc.patch(model, freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)), torch.no_grad():
        for module in model.modules():
            if hasattr(module, "set_processor"):
                module.set_processor(type(module.processor)())
        model(**given)


def probe(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Probe a shared model."""
    model, given = make(case["model"])
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)

    def run() -> None:
        with torch.no_grad():
            runs(**given)

    runs = share(model, case["library"])
    freeloc.probe(runs, run, case["depth"], profile=profile, folder=case["folder"])


def cache(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Largest differences: of a cached pipeline in two processes and in one; and of a patch and none."""
    import cache_dit

    def run(is_shared: bool, is_patched: bool) -> Tensor:
        model, given = make("wan of 4")
        scheduler = FlowMatchEulerDiscreteScheduler()
        pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=model)
        profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
        shares = cache_dit.ParallelismConfig(ulysses_size=2, attention_backend="native") if is_shared else None
        options = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 1}
        config = cache_dit.DBCacheConfig(**options, residual_diff_threshold=10.0)
        patch = freeloc.patch(model, profile) if is_patched and case["order"] == "patch first" else None
        cache_dit.enable_cache(pipe, cache_config=config, parallelism_config=shares)
        patch = patch or (freeloc.patch(model, profile) if is_patched else None)
        text = given["encoder_hidden_states"]
        latents = pipe(
            prompt_embeds=text,
            negative_prompt_embeds=-text,
            latents=given["hidden_states"],
            num_frames=4 * GRID[0] - 3,
            height=16 * GRID[1],
            width=16 * GRID[2],
            num_inference_steps=4,
            output_type="latent",
        ).frames
        if patch:
            found["skips"] = sum(sum(layer.skipped.values()) for layer in patch.report().layers)
        return latents

    direct, one, two = run(False, False), run(False, True), run(True, True)
    found["correction"], found["two"] = difference(one, direct), difference(one, two)
