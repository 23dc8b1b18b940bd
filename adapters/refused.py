"""Video models of diffusers whose attention is not one softmax over a grid of frames, rows and columns, and why.

Source: their files in diffusers/models/transformers.
"""

from freeloc.adapter import Refusal


def _refusal(name: str, file: str, model: str, reason: str) -> Refusal:
    return Refusal(name, (f"diffusers.models.transformers.transformer_{file}.{model}",), reason)


ADAPTERS = [
    _refusal(
        "sana-video",
        "sana_video",
        "SanaVideoTransformer3DModel",
        "its self-attention is linear: it has no weights of pairs of tokens that could be re-encoded or masked. "
        "Generate in windows of its trained length, or use a model with softmax attention, such as Wan",
    ),
    _refusal(
        "sana-wm",
        "sana_wm",
        "SanaWMTransformer3DModel",
        "three of four layers are recurrences over frames (gated delta net), which have no weights of pairs of tokens. "
        "Use a model with softmax attention, such as Wan",
    ),
    _refusal(
        "sana-wm-refiner",
        "sana_wm_refiner",
        "SanaWMLTX2RefinerTransformer3DModel",
        "it refines blocks one after the other with a cache of keys from earlier ones, and gets its rotary tables as "
        "an argument. It supports any length itself; to correct LTX-2, use LTX2VideoTransformer3DModel",
    ),
    Refusal(
        "hunyuan-video-framepack",
        (
            "diffusers.models.transformers.transformer_hunyuan_video_framepack.HunyuanVideoFramepackTransformer3DModel",
            "diffusers_helper.models.hunyuan_video_packed.HunyuanVideoTransformer3DModelPacked",  # lllyasviel/FramePack
            "musubi_tuner.frame_pack.hunyuan_video_packed.HunyuanVideoTransformer3DModelPacked",
        ),
        "earlier frames, pooled by two and by four, come before the generated ones, at separate positions. It "
        "generates long videos itself, section by section of 9 latent frames; to correct attention, use HunyuanVideo",
    ),
    _refusal(
        "helios",
        "helios",
        "HeliosTransformer3DModel",
        "earlier frames, pooled by two and by four, come before the generated ones. It generates long videos itself, "
        "chunk by chunk; to correct attention, use Wan, on which it is based",
    ),
    _refusal(
        "anyflow-far",
        "anyflow_far",
        "AnyFlowFARTransformer3DModel",
        "it generates chunk by chunk, with a block mask of flex_attention, from a cache of keys and coarser early "
        "frames. It generates long videos itself; to correct attention, use AnyFlowTransformer3DModel",
    ),
    _refusal(
        "wan-animate-2",
        "wan_animate_2",
        "WanAnimate2Transformer3DModel",
        "with a block mask of flex_attention, frames also attend to cached keys of a reference video, at other "
        "positions. Use Wan-Animate (WanAnimateTransformer3DModel)",
    ),
    _refusal(
        "cosmos3-omni",
        "cosmos3",
        "Cosmos3OmniTransformer",
        "text, video, sound and actions are packed into one sequence with separate positions, and part of it is "
        "causal. Use Cosmos 1 or 2 (CosmosTransformer3DModel)",
    ),
    _refusal(
        "minimax-h3",
        "minimax_h3",
        "MiniMaxH3Transformer3DModel",
        "text, images, sound and video are packed into one sequence, in an order and at positions that the caller "
        "chooses. Use a model whose tokens are one video, such as HunyuanVideo or Wan",
    ),
    _refusal(
        "kandinsky6-sr",
        "kandinsky6_sr",
        "Kandinsky6SRTransformer3DModel",
        "it enlarges a finished video, with its own sparse mask (NABLA, in flex_attention). Correct the model that "
        "generates the video, Kandinsky6Transformer3DModel, and leave this one unchanged",
    ),
]
