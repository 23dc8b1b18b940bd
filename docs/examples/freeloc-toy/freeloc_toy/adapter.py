"""ToyDiT, in freeloc's words. Names and numbers only: importing this imports no model."""

from freeloc.adapter import Adapter, AttentionSite, Kernel, TemporalRope, TokenGrid

KERNEL = Kernel(
    function="kernel",
    layout="b l h d",
    arguments=("q", "k", "v", "bias", "sharpness"),
    query="q",
    key="k",
    value="v",
    mask="bias",
    scale="sharpness",
)

TOY = Adapter(
    name="toy",
    family="toy",
    classes=("freeloc_toy.model.ToyDiT",),
    sites=(
        AttentionSite("blocks.*.attention", kernel=KERNEL, text="first", text_tokens="transformer.text", joint=True),
    ),
    grid=TokenGrid("video", axes="b f c h w", patch=(1, 2, 2)),
    rope=TemporalRope(channels=4, first=4, pairing="(two pair)", theta=100.0, tables="turns"),
    heads="heads",
    head_dim="head_dim",
    other_attention=("text_attention",),
)
