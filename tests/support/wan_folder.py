"""A whole small random Wan pipeline as a folder, as diffusers saves it: tokenizer, text encoder, VAE, transformer."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel


def save_wan_pipeline(folder: Path) -> None:
    """Videos have 4 n + 1 frames; a latent is 8 pixels wide."""
    torch.manual_seed(0)
    letters = [(letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokens = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    tokens.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    transformer = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2}
    transformer |= {"in_channels": 16, "out_channels": 16, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32}
    vae = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    pipe = WanPipeline(
        tokenizer=T5TokenizerFast(tokenizer_object=tokens, extra_ids=0, **special),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=64, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
        ),
        vae=AutoencoderKLWan(temperal_downsample=[False, True, True], **vae),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=WanTransformer3DModel(**transformer),
    )
    pipe.save_pretrained(folder)
