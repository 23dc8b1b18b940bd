"""The models of ComfyUI on which `freeloc inspect` is tested, and what its file must be for each."""

from pathlib import Path

import comfyui_models
from inspected import problems, written

CONNECTORS = "audio_embeddings_connector.transformer_1d_blocks.*.attn1"
CASES = {
    "comfyui-wan": "",
    "comfyui-wan-i2v": "",
    "comfyui-wan-vace": "",
    "comfyui-hunyuan-video": "",
    "comfyui-hunyuan-video-1.5": "",
    "comfyui-cogvideox": "",
    "comfyui-cogvideox-1.5": "",
    "comfyui-mochi": "",
    "comfyui-kandinsky5": "",
    "comfyui-cosmos-predict2": "",
    "comfyui-ltx": "",
    "comfyui-ltx-2": f"# A person must add: other_attention: {CONNECTORS}",
}
"""What a person must add to the file, by the label of the example; empty if nothing."""


def check(label: str, folder: Path, kernel: str = "") -> None:
    """The written file names the kernel, and passes unedited or says what a person must add."""
    example = next(example for example in comfyui_models.EXAMPLES if example.label == label)
    adapter, text = written(example, folder)
    assert all(site.kernels[0].function.startswith(kernel) for site in adapter.sites), text
    if CASES[label]:
        assert CASES[label] in text
        assert any(problem.startswith("check_other_attention_is_named") for problem in problems(example, adapter))
    else:
        assert problems(example, adapter) == [], text
