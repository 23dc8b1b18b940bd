"""Which of vLLM-Omni's pipelines are corrected, and with which profile."""

import functools
import json
import os
from typing import Any

from freeloc.errors import AdapterError, FreelocError
from freeloc.layer import ModelAttention
from vllm_omni_freeloc import NAME

VARIABLE = "FREELOC_PROFILE"
"""The environment variable that names a profile, or its file."""

ADAPTERS = {
    "WanPipeline": "wan",
    "WanImageToVideoPipeline": "wan",
    "WanDMDPipeline": "wan",
    "WanT2VDMD2Pipeline": "wan",
    "WanI2VDMD2Pipeline": "wan",
    "HunyuanVideo15Pipeline": "hunyuan-video-1.5",
    "HunyuanVideo15ImageToVideoPipeline": "hunyuan-video-1.5",
}
"""freeloc's adapter for the transformer of each pipeline."""

SIZES = ("num_layers", "num_attention_heads", "attention_head_dim")
"""What a profile must fit, by its names in the configuration of a transformer."""

ROPE = ("rope_axes_dim", "rope_theta")
"""What adapters read there about the rotary embedding."""

REFUSED = {
    "WanVACEPipeline": "it does not say which frames are reference images",
    "WanS2VPipeline": "it does not tell its attention where the video's tokens are",
}


def model_attention(config: Any) -> ModelAttention:
    """The corrected attention of the model that vLLM-Omni is loading, from its OmniDiffusionConfig.

    Raises:
        FreelocError: if it cannot be corrected, or no profile fits.
    """
    pipeline = getattr(config, "model_class_name", None)
    _require_whole_tokens(config)
    if pipeline not in ADAPTERS:
        reason = f": {REFUSED[pipeline]}" if pipeline in REFUSED else ""
        raise AdapterError(
            f"freeloc does not correct vLLM-Omni's {pipeline}{reason}. Corrected: {', '.join(ADAPTERS)}. Remove the "
            f"attention backend {NAME} from the configuration"
        )
    sizes = {
        name: config.tf_model_config.get(name) for name in ("num_layers", "num_attention_heads", "attention_head_dim")
    }
    missing = [name for name, value in sizes.items() if not value]
    if missing:
        raise AdapterError(
            f"expected {', '.join(missing)} in the configuration of the transformer of {config.model}, found nothing: "
            "is its config.json complete?"
        )
    rope = json.dumps({name: value for name in ROPE if (value := config.tf_model_config.get(name)) is not None})
    return _found(ADAPTERS[pipeline], *sizes.values(), os.environ.get(VARIABLE) or None, rope)


def _require_whole_tokens(config: Any) -> None:
    """Require that each process has all tokens, whatever heads it has."""
    for name in ("ring_degree", "allgather_degree"):
        if getattr(getattr(config, "parallel_config", None), name, 1) > 1:
            raise FreelocError(
                f"expected {name} 1, since freeloc can share the heads of a video among devices but not its tokens, "
                f"found {getattr(config.parallel_config, name)}: use ulysses_degree"
            )


@functools.lru_cache(maxsize=8)
def _found(adapter: str, layers: int, heads: int, head_dim: int, profile: str | None, rope: str) -> ModelAttention:
    """One for all layers, and for both transformers of Wan 2.2."""
    from vllm.logger import init_logger

    say = init_logger("vllm_omni.freeloc").info
    sizes = {"layers": layers, "heads": heads, "head_dim": head_dim}
    try:
        return ModelAttention.find(
            adapter, **sizes, config=json.loads(rope), profile=profile, say=lambda text: say("%s", text)
        )
    except FreelocError as error:
        raise type(error)(f"{error} (set {VARIABLE} to the profile's name or file)") from error
