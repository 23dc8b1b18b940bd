"""The attention backend: it corrects videos that are longer than the model was trained on."""

from typing import Any

import torch
from torch import Tensor
from vllm_omni.diffusion.attention.backends.abstract import AttentionBackend, AttentionImpl, AttentionMetadata
from vllm_omni.diffusion.attention.selector import get_attn_backend_for_capability, get_attn_backend_for_role
from vllm_omni.diffusion.config import get_current_diffusion_config_or_none
from vllm_omni.diffusion.data import AttentionConfig

from freeloc.errors import LayoutError
from vllm_omni_freeloc import NAME, hunyuan
from vllm_omni_freeloc.models import model_attention


def others(config: Any) -> AttentionConfig:
    """The configuration of the backend that computes everything else: the user's default, or the platform's."""
    default = getattr(getattr(config, "diffusion_attention_config", None), "default", None)
    return AttentionConfig(default=None if default is None or default.backend.upper() == NAME else default)


class FreelocBackend(AttentionBackend):
    """Attention over a long video as a freeloc profile says; everything else as without freeloc."""

    @staticmethod
    def get_name() -> str:
        """Its name in messages and in the configuration."""
        return NAME

    @staticmethod
    def get_impl_cls() -> type["FreelocImpl"]:
        """The class of which each attention layer gets one."""
        return FreelocImpl

    @staticmethod
    def get_metadata_cls() -> type[AttentionMetadata]:
        """What layers pass to it."""
        return AttentionMetadata

    @staticmethod
    def get_builder_cls() -> None:
        """It needs no builder of metadata."""

    @staticmethod
    def get_supported_head_sizes() -> list[int]:
        """All."""
        return []

    @classmethod
    def supports_attention_mask(cls, attention_spec: object | None = None) -> bool:
        """Whether short videos may have a mask. Long ones may."""
        config = others(get_current_diffusion_config_or_none())
        return get_attn_backend_for_capability("self", config).supports_attention_mask(config.default)


class FreelocImpl(AttentionImpl):
    """The attention of one layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        softmax_scale: float,
        causal: bool = False,
        num_kv_heads: int | None = None,
        prefix: str = "",
        qkv_layout: str | None = None,
        backend_kwargs: dict[str, Any] | None = None,
        role: str = "self",
        **rest: Any,
    ) -> None:
        config = get_current_diffusion_config_or_none()
        backend, spec = get_attn_backend_for_role(role, head_size, others(config), allow_trtllm_default=False)
        self.default = backend.get_impl_cls()(
            num_heads=num_heads,
            head_size=head_size,
            softmax_scale=softmax_scale,
            causal=causal,
            num_kv_heads=num_kv_heads,
            prefix=prefix,
            qkv_layout=qkv_layout,
            backend_kwargs=spec.backend_kwargs() if spec is not None else None,
            role=role,
            **rest,
        )
        self.num_heads, self.softmax_scale, self.prefix = num_heads, softmax_scale, prefix
        self.model = model_attention(config) if role == "self" else None
        self.layer = self.model.layer_of(prefix) if self.model is not None else None
        self.running: hunyuan.Running | None = None
        if config is not None and str(config.model_class_name).startswith("HunyuanVideo15"):
            hunyuan.watch()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_metadata: AttentionMetadata | None = None
    ) -> Tensor:
        """(batch, tokens, heads, head_size) of the same: all tokens, and the heads of this process."""
        if self.model is None:
            return self.default.forward(query, key, value, attn_metadata)
        if self.running is not None:
            compute = self._long_joint if self.running.long else self.default.forward
            return compute(query, key, value, attn_metadata)
        layout = attn_metadata.video_layout if attn_metadata is not None else None
        if self.layer is None and layout is None:
            return self.default.forward(query, key, value, attn_metadata)  # such as a text encoder
        grid = layout.latent_grid if layout is not None else None
        if grid is None or layout.video_spans or self.layer is None:
            raise LayoutError(
                f"expected the attention over a video to say its layer and its latent grid, found '{self.prefix}' with "
                f"{layout}: remove the attention backend {NAME} from the configuration"
            )
        if grid[0] <= self.model.trained_frames:
            return self.default.forward(query, key, value, attn_metadata)
        return self._long(query, key, value, attn_metadata)

    @torch.compiler.disable
    def _long(self, query: Tensor, key: Tensor, value: Tensor, metadata: AttentionMetadata) -> Tensor:
        """A video that is longer than in training."""
        layout = metadata.video_layout
        if not self.model.corrects(self.layer, layout.latent_grid[0]):
            return self.default.forward(query, key, value, metadata)
        # vLLM-Omni promises that a mask hides trailing padding only, which is not attended to here.
        return self.model.attend(
            self.layer,
            query,
            key,
            value,
            grid=layout.latent_grid,
            first_head=self._first_head(query.shape[2]),
            text_first=layout.prefix_len or 0,
            scale=self.softmax_scale,
        )

    @torch.compiler.disable
    def _long_joint(self, query: Tensor, key: Tensor, value: Tensor, metadata: AttentionMetadata | None) -> Tensor:
        """A long video with text after it, of a model that is watched."""
        frames, rows, columns = self.running.grid
        if not self.model.corrects(self.layer, frames):
            return self.default.forward(query, key, value, metadata)
        text, mask = hunyuan.text_and_mask(metadata, frames * rows * columns, query.shape[1])
        return self.model.attend(
            self.layer,
            query,
            key,
            value,
            grid=self.running.grid,
            first_head=self._first_head(query.shape[2]),
            text_last=text,
            mask=mask,
            scale=self.softmax_scale,
        )

    def _first_head(self, heads: int) -> int:
        """Number of the first of the heads that this process has: a part of tensor parallelism's, under Ulysses."""
        if heads == self.model.profile.model.heads:
            return 0
        from vllm.distributed import get_tensor_model_parallel_rank
        from vllm_omni.diffusion.distributed.parallel_state import get_ulysses_parallel_rank

        first = get_tensor_model_parallel_rank() * self.num_heads
        return first if heads == self.num_heads else first + get_ulysses_parallel_rank() * heads
