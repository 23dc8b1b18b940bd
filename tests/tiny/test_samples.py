"""Batches whose samples differ in size, in a model that hides the padding with a mask of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import freeloc
from freeloc.testing import noise


class Attention(nn.Module):
    """Self-attention over padded sequences."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(24, 72)
        self.heads, self.head_dim = 2, 12

    def forward(self, x, sizes, mask, padding):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))

    def forward(self, x, sizes, per_query=False):
        seen = (torch.arange(x.shape[1]) < sizes.prod(1)[:, None])[:, None, None]
        mask = seen.expand(-1, -1, x.shape[1], -1) if per_query else seen
        for layer in self.layers:
            x = x + layer(x, sizes, mask, padding=x.shape[1] - int(sizes.prod(1).min()))
        return x


ADAPTER = freeloc.adapter.Adapter(
    name="padded",
    family="padded",
    classes=(f"{__name__}.Model",),
    sites=(freeloc.adapter.AttentionSite("layers.*", text="last", text_tokens="padding"),),
    grid=freeloc.adapter.TokenGrid("sizes", axes="sample (f h w)", of="attention"),
    rope=None,
    heads="layers.0.heads",
    head_dim="layers.0.head_dim",
)


@pytest.mark.parametrize("per_query", [False, True])
def test_each_sample_gets_its_own_part_of_the_mask(per_query):
    torch.manual_seed(0)
    model, sizes = Model().eval(), torch.tensor([[9, 2, 3], [6, 2, 3]])
    x = noise(2, 54, 24)
    profile = freeloc.default_profile(model, "tsa", 4, adapter=ADAPTER)
    with torch.no_grad(), freeloc.patch(model, profile, adapter=ADAPTER):
        together = model(x, sizes, per_query)
        alone = [model(x[n : n + 1, : size.prod()], sizes[n : n + 1]) for n, size in enumerate(sizes)]
    for sample, own in enumerate(alone):
        assert torch.allclose(together[sample, : own.shape[1]], own[0], atol=1e-5)
    assert not torch.allclose(model(x, sizes)[0], together[0], atol=1e-3)
