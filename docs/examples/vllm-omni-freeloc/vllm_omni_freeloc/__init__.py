"""freeloc as an attention backend of vLLM-Omni, which calls `register` in each of its processes."""

NAME = "FREELOC"
"""The name of the backend in vLLM-Omni's attention configuration."""


def register() -> None:
    """Make the backend known to vLLM-Omni. It may be called any number of times."""
    from aenum import extend_enum
    from vllm_omni.diffusion.attention.backends.registry import DiffusionAttentionBackendEnum

    if NAME not in DiffusionAttentionBackendEnum.__members__:
        extend_enum(DiffusionAttentionBackendEnum, NAME, "vllm_omni_freeloc.backend.FreelocBackend")
