"""Small random pipelines of diffusers, and arguments with which each makes the latents of a video, without text."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from diffusers.guiders import ClassifierFreeGuidance
from freeloc_adapters.examples import (
    allegro,
    cogvideox,
    cosmos,
    easyanimate,
    hunyuan_video,
    kandinsky,
    latte,
    ltx,
    mochi,
    motif_video,
    wan,
    wan_based,
)

from freeloc.testing import noise, random_model

IMAGE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8))
VIDEO = [PIL.Image.fromarray(np.random.default_rng(n).integers(0, 256, (32, 48, 3), np.uint8)) for n in range(33)]


@dataclass(frozen=True)
class Small:
    """A small pipeline.

    Args:
        make: makes it, with the same weights each time.
        arguments: those of a call, beside its size, steps and generator, for a number of prompts.
        axes: of the latents that it draws, before it packs them.
        patch_frames: frames of latents for each frame of tokens.
        first: reference images on that axis, before the video.
        sizes: names and values of the arguments of the size, by default 33 frames, 9 latent ones of 4 x 6.
    """

    make: Callable[[], Any]
    arguments: Callable[[int], dict[str, Any]]
    axes: str = "b c f h w"
    patch_frames: int = 1
    first: int = 0
    sizes: tuple[tuple[str, int], ...] = (("num_frames", 33), ("height", 32), ("width", 48))

    def pipeline(self) -> Any:
        """A new one."""
        pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, prompts: int = 1, **changes: Any) -> torch.Tensor:
        """The latents of the videos."""
        given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
        out = pipe(**dict(self.sizes) | given | self.arguments(prompts) | changes, return_dict=False)
        return out[0]


def _flow(**options: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, **options)


def wan_vae(channels: int = 16) -> Any:
    """A small VAE of Wan."""
    sizes = {"base_dim": 3, "z_dim": channels, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return random_model(lambda: AutoencoderKLWan(temperal_downsample=[False, True, True], **sizes))


def _wan_model(name: str = "WanTransformer3DModel", **changes: Any) -> Any:
    return random_model(lambda: getattr(diffusers, name)(**wan.SIZES | changes))


OF_WAN = {"in_channels": 16, "out_channels": 16}
NO_TEXT: dict[str, Any] = {"tokenizer": None, "text_encoder": None}
NO_TEXTS: dict[str, Any] = NO_TEXT | {"tokenizer_2": None, "text_encoder_2": None}


def _wan() -> Any:
    return diffusers.WanPipeline(**NO_TEXT, vae=None, scheduler=_flow(), transformer=wan.wan())


def _wan_video() -> Any:
    parts = {"vae": wan_vae(), "scheduler": _flow(), "transformer": _wan_model(**OF_WAN)}
    return diffusers.WanVideoToVideoPipeline(**NO_TEXT, **parts)


def _wan_image(**options: Any) -> Any:
    in_channels = 16 if options.get("expand_timesteps") else 36
    model = _wan_model(in_channels=in_channels, out_channels=16)
    parts = {"vae": wan_vae(), "scheduler": _flow(), "transformer": model}
    return diffusers.WanImageToVideoPipeline(**NO_TEXT, **parts, **options)


def _wan_vace() -> Any:
    model = _wan_model("WanVACETransformer3DModel", vace_layers=[0, 2], vace_in_channels=96, **OF_WAN)
    return diffusers.WanVACEPipeline(**NO_TEXT, vae=wan_vae(), scheduler=_flow(), transformer=model)


def _skyreels(forcing: bool) -> Any:
    kind = diffusers.SkyReelsV2DiffusionForcingPipeline if forcing else diffusers.SkyReelsV2Pipeline
    scheduler = diffusers.UniPCMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    return kind(**NO_TEXT, vae=None, scheduler=scheduler, transformer=wan_based.skyreels_v2())


def _cogvideox(sizes: dict[str, Any] = cogvideox.SIZES, image: bool = False) -> Any:
    parts = {"scheduler": diffusers.CogVideoXDDIMScheduler(), **NO_TEXT}
    if not image:
        return diffusers.CogVideoXPipeline(**parts, vae=None, transformer=cogvideox.cogvideox(sizes))
    vae = random_model(
        lambda: diffusers.AutoencoderKLCogVideoX(
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            norm_num_groups=2,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
        )
    )
    model = cogvideox.cogvideox(sizes | {"in_channels": 8})
    return diffusers.CogVideoXImageToVideoPipeline(**parts, vae=vae, transformer=model)


def _hunyuan_vae() -> Any:
    sizes = {"latent_channels": 4, "block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2}
    return random_model(lambda: diffusers.AutoencoderKLHunyuanVideo(**sizes))


def _hunyuan() -> Any:
    vae = _hunyuan_vae()
    model = hunyuan_video.video(guidance_embeds=True)
    return diffusers.HunyuanVideoPipeline(**NO_TEXTS, vae=vae, scheduler=_flow(), transformer=model)


def _hunyuan_15() -> Any:
    vae = random_model(
        lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1
        )
    )
    sizes = hunyuan_video.SIZES | {"in_channels": 2 * 4 + 1, "patch_size": 1}
    sizes |= {"text_embed_2_dim": 8, "image_embed_dim": 8, "task_type": "t2v"}
    model = random_model(lambda: diffusers.HunyuanVideo15Transformer3DModel(**sizes))
    guider = ClassifierFreeGuidance(guidance_scale=2.0)
    return diffusers.HunyuanVideo15Pipeline(**NO_TEXTS, vae=vae, scheduler=_flow(), transformer=model, guider=guider)


def _ltx(image: bool = False) -> Any:
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "transformer": ltx.ltx()}
    if not image:
        return diffusers.LTXPipeline(**NO_TEXT, **parts, vae=None)
    vae = random_model(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(4, 4, 4, 4),
            decoder_block_out_channels=(4, 4, 4, 4),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        )
    )
    return diffusers.LTXImageToVideoPipeline(**NO_TEXT, **parts, vae=vae)


def _kandinsky() -> Any:
    parts = {"transformer": kandinsky.kandinsky_5(), "vae": None, "scheduler": _flow()}
    return diffusers.Kandinsky5T2VPipeline(**NO_TEXTS, **parts)


def _easyanimate() -> Any:
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    parts = {"vae": vae, "transformer": easyanimate.easyanimate(), "scheduler": _flow()}
    return diffusers.EasyAnimatePipeline(**NO_TEXT, **parts)


def _motif_video() -> Any:
    guider = ClassifierFreeGuidance(guidance_scale=2.0)
    model = motif_video.motif_video(in_channels=9)
    parts = {"vae": wan_vae(4), "transformer": model, "scheduler": _flow(), "guider": guider}
    return diffusers.MotifVideoPipeline(**NO_TEXT, **parts)


class _Unchecked:
    """In place of the safety checker of Cosmos, which is in a package of its own, with weights of its own."""

    def to(self, device: object) -> None:
        pass


def _cosmos() -> Any:
    parts = {"vae": None, "transformer": cosmos.cosmos(), "safety_checker": _Unchecked()}
    return diffusers.CosmosTextToWorldPipeline(**NO_TEXT, **parts, scheduler=diffusers.EDMEulerScheduler())


def _latte() -> Any:
    sizes = latte.SIZES | {"out_channels": 8, "video_length": 9}
    make = partial(random_model, lambda: diffusers.LatteTransformer3DModel(**sizes))
    return _plain("LattePipeline", make, diffusers.DDIMScheduler)


def _plain(name: str, model: Callable[[], Any], scheduler: Callable[[], Any]) -> Any:
    return getattr(diffusers, name)(**NO_TEXT, vae=None, transformer=model(), scheduler=scheduler())


def _prompts(tokens: int, channels: int, count: int, mask: str = "") -> dict[str, Any]:
    """Embeddings of prompts and their negatives, with masks of this name."""
    embeds = noise(count, tokens, channels)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds.flip(1)}
    masks = {f"{start}{mask}": torch.ones(count, tokens, dtype=torch.long) for start in ("", "negative_")}
    return given | (masks if mask else {})


def _hunyuan_prompts(count: int) -> dict[str, Any]:
    return {
        "prompt_embeds": noise(count, 5, 12),
        "prompt_attention_mask": torch.ones(count, 5),
        "pooled_prompt_embeds": noise(count, 8),
    }


def _hunyuan_15_prompts(count: int) -> dict[str, Any]:
    valid = torch.ones(count, 5, dtype=torch.bool)
    given = {"prompt_embeds": noise(count, 5, 12), "prompt_embeds_mask": valid}
    given |= {"prompt_embeds_2": noise(count, 3, 8), "prompt_embeds_mask_2": valid[:, 2:]}
    return given | {f"negative_{name}": value for name, value in given.items()}


def _kandinsky_prompts(count: int) -> dict[str, Any]:
    given = {"prompt_embeds_qwen": noise(count, 3, 12), "prompt_embeds_clip": noise(count, 8)}
    given |= {"prompt_cu_seqlens": torch.arange(count + 1, dtype=torch.int32) * 3}
    return given | {f"negative_{name}": value for name, value in given.items()}


_wan_text = partial(_prompts, 3, 16)
_cogvideox_text = partial(_prompts, 5, 12)
_masked = partial(_prompts, mask="prompt_attention_mask")
_ltx_text = partial(_masked, 3, 12)


def _with(arguments: Callable[[int], dict[str, Any]], **more: Any) -> Callable[[int], dict[str, Any]]:
    return lambda count: arguments(count) | more


PIPELINES = {
    "wan": Small(_wan, _wan_text),
    "wan-image": Small(_wan_image, _with(_wan_text, image=IMAGE)),
    "wan-image-5b": Small(partial(_wan_image, expand_timesteps=True), _with(_wan_text, image=IMAGE)),
    "wan-video": Small(_wan_video, _with(_wan_text, video=VIDEO, strength=0.9), sizes=(("height", 32), ("width", 48))),
    "wan-vace": Small(_wan_vace, _wan_text),
    "wan-vace-references": Small(_wan_vace, _with(_wan_text, reference_images=[IMAGE]), first=1),
    "skyreels-v2": Small(partial(_skyreels, False), _wan_text),
    "skyreels-v2-forcing": Small(partial(_skyreels, True), _with(_wan_text, prompt=None)),
    "cogvideox": Small(_cogvideox, _cogvideox_text, axes="b f c h w"),
    "cogvideox-1.5": Small(
        partial(_cogvideox, cogvideox.VERSION_15),
        _cogvideox_text,
        axes="b f c h w",
        patch_frames=2,
        sizes=(("num_frames", 65), ("height", 32), ("width", 48)),
    ),
    "cogvideox-image": Small(partial(_cogvideox, image=True), _with(_cogvideox_text, image=IMAGE), axes="b f c h w"),
    "hunyuan-video": Small(_hunyuan, _hunyuan_prompts),
    "hunyuan-video-1.5": Small(_hunyuan_15, _hunyuan_15_prompts),
    "ltx": Small(_ltx, _ltx_text, sizes=(("num_frames", 65), ("height", 64), ("width", 96))),
    "ltx-image": Small(
        partial(_ltx, True), _with(_ltx_text, image=IMAGE), sizes=(("num_frames", 65), ("height", 64), ("width", 96))
    ),
    "kandinsky5": Small(_kandinsky, _kandinsky_prompts, axes="b f h w c"),
    "allegro": Small(
        partial(_plain, "AllegroPipeline", allegro.allegro, diffusers.DDIMScheduler),
        _with(partial(_masked, 5, 12), negative_prompt=None),
    ),
    "latte": Small(
        _latte,
        _with(partial(_prompts, 5, 12), negative_prompt=None),
        sizes=(("video_length", 9), ("height", 32), ("width", 48)),
    ),
    "mochi": Small(
        partial(_plain, "MochiPipeline", mochi.mochi, _flow),
        partial(_masked, 5, 16),
        sizes=(("num_frames", 49), ("height", 32), ("width", 48)),
    ),
    "cosmos": Small(
        _cosmos, _with(partial(_prompts, 3, 16), fps=24), sizes=(("num_frames", 65), ("height", 32), ("width", 48))
    ),
    "easyanimate": Small(_easyanimate, partial(_masked, 5, 12)),
    "motif-video": Small(_motif_video, partial(_masked, 5, 12)),
}


def without_run(name: str) -> Any:
    """A pipeline of which only `prepare_latents` works, since what makes its prompts is too large for a test."""
    cls = getattr(diffusers, name)
    models = {"LTX2Pipeline": ltx.ltx_2, "Kandinsky5I2VPipeline": kandinsky.kandinsky_5}
    given = {"transformer": models.get(name, hunyuan_video.video)(), "scheduler": _flow()}
    if "LTX" not in name:
        given["vae"] = _hunyuan_vae()
    return cls(**{part: given.get(part) for part in inspect.signature(cls.__init__).parameters if part != "self"})
