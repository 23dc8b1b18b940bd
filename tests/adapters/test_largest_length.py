"""Models with positions for a limited number of frames: the error says how many, where the model fails by itself."""

import pytest
import torch
from diffusers import (
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    LatteTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from freeloc_adapters.examples import cosmos, latte, wan
from subjects import EXAMPLES, Subject, first
from torch import nn

import freeloc
from freeloc.discovery import find_adapter
from freeloc.testing import random_model

ROWS = 12


def of_wan(cls, rows=ROWS, **sizes):
    """A small model of the Wan family with so many rows of RoPE."""
    return random_model(lambda: cls(**wan.SIZES | {"num_layers": 2, "rope_max_seq_len": rows} | sizes))


def shortened(label, path):
    """An example whose table of positions is cut."""
    model = EXAMPLES[label].model()
    holder, _, name = path.rpartition(".")
    module = model.get_submodule(holder)
    setattr(module, name, getattr(module, name)[:ROWS].clone())
    return model


MODELS = {
    "wan": lambda: of_wan(WanTransformer3DModel),
    "wan-vace": lambda: of_wan(WanVACETransformer3DModel, vace_layers=[0, 2], vace_in_channels=6, num_layers=4),
    "skyreels-v2": lambda: of_wan(SkyReelsV2Transformer3DModel),
    "chronoedit": lambda: of_wan(ChronoEditTransformer3DModel),
    "anyflow": lambda: of_wan(AnyFlowTransformer3DModel),
    "wan-original": lambda: shortened("wan-original", "freqs"),
    "kandinsky5": lambda: shortened("kandinsky5", "visual_rope_embeddings.args_0"),
    "kandinsky6": lambda: shortened("kandinsky6", "visual_rope_embeddings.angles_0"),
    "latte": lambda: random_model(lambda: LatteTransformer3DModel(**latte.SIZES | {"video_length": ROWS})),
    "cosmos": lambda: cosmos.cosmos(max_size=(ROWS, 64, 64)),
    # One table for all axes, as long as the largest needs it in tokens.
    "cosmos-2": lambda: cosmos.cosmos(extra_pos_embed_type=None, max_size=(6, 2 * ROWS, 8)),
}
"""Small models by the label of their example, with positions for 12 latent frames."""
SETTINGS = {
    "wan-original": "table freqs",
    "kandinsky5": r"table visual_rope_embeddings\.args_0",
    "kandinsky6": r"table visual_rope_embeddings\.angles_0",
    "latte": "video_length",
    "cosmos": "max_size",
    "cosmos-2": "max_size",
}


@pytest.mark.parametrize("label", MODELS)
def test_the_largest_length_runs_and_one_frame_more_says_so(label):
    subject = Subject(label, MODELS[label]())
    with pytest.raises((RuntimeError, IndexError)):  # the model's own
        subject.run(ROWS + 1)
    name, setting = type(subject.model).__name__, SETTINGS.get(label, "rope_max_seq_len")
    message = rf"at most {ROWS} latent frames, since {name} has positions for no more, found 13\. .* {setting}$"
    with subject.patch() as patch:
        subject.run(ROWS)
        assert patch.report().corrected_calls > 0
        with pytest.raises(freeloc.errors.LayoutError, match=message):
            subject.run(ROWS + 1)
        subject.run(ROWS)  # the error leaves nothing behind


@pytest.mark.parametrize(("label", "largest"), [("wan", 1024), ("kandinsky5", 128), ("cosmos", 32), ("latte", 32)])
def test_the_examples_have_their_own_limits(label, largest):
    model = EXAMPLES[label].model()
    where, _ = find_adapter(model).grid.largest_frames
    given = EXAMPLES[label].inputs(2, 2, 3, 1)
    found = freeloc.adapter.paths.read_path(model, where) if isinstance(where, str) else where(model, given)
    assert found == largest


def test_a_table_that_grows_under_the_patch_is_read_again():
    subject = Subject("wan", of_wan(WanTransformer3DModel))
    longer = of_wan(WanTransformer3DModel, rows=2 * ROWS)
    with subject.patch():
        with pytest.raises(freeloc.errors.LayoutError, match="at most 12"):
            subject.run(ROWS + 1)
        subject.model.rope = longer.rope
        subject.run(ROWS + 1)


def test_a_replaced_rope_has_no_limit_that_freeloc_knows():
    class Endless(nn.Module):
        def __init__(self, rope):
            super().__init__()
            self.inner = rope

        def forward(self, hidden_states):
            return self.inner(hidden_states)

    subject = Subject("wan", of_wan(WanTransformer3DModel))
    subject.model.rope = Endless(of_wan(WanTransformer3DModel, rows=2 * ROWS).rope)
    with subject.patch() as patch:
        subject.run(ROWS + 1)
    assert patch.report().corrected_calls > 0


def test_more_frames_whose_positions_the_caller_has_placed_within_the_table():
    subject = Subject("kandinsky5", MODELS["kandinsky5"]())
    given = subject.example.inputs(ROWS + 4, 2, 3, 1)
    placed = (torch.arange(ROWS + 4).clamp(max=ROWS - 1), *given["visual_rope_pos"][1:])
    where, _ = find_adapter(subject.model).grid.largest_frames
    assert where(subject.model, given) == ROWS
    assert where(subject.model, given | {"visual_rope_pos": placed}) == ROWS + 4
    with torch.no_grad():
        first(subject.model, given | {"visual_rope_pos": placed})  # the model's own
