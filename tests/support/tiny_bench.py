"""For tests of the bench: its second model without trained weights, and a method with another plan at each step."""

from typing import Any

import pytest
import torch
from pydantic import BaseModel

from freeloc import FramePlan
from freeloc.plans.baselines import sliding_window
from freeloc.plans.method import Method
from freeloc.tiny import models
from freeloc.tiny.film import footage
from freeloc.tiny.film import model as film


class Untrained(models.TinyFilm):
    """The model tiny-film with random weights."""

    made_from = (footage.CLIPS,)

    def load(self) -> Any:
        """A new pipeline."""
        torch.manual_seed(0)
        transformer = film.new_transformer().eval().requires_grad_(False)
        return film.CogVideoXPipeline(
            tokenizer=None, text_encoder=None, vae=None, transformer=transformer, scheduler=film.scheduler()
        )


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> models.TinyModel:
    """In this test the model tiny-film has random weights."""
    monkeypatch.setitem(models.MODELS, "tiny-film", Untrained())
    return models.MODELS["tiny-film"]


class Rotation(BaseModel):
    """Settings of `ROTATING`."""

    step: int = 0
    sink: int = 1


def rotating(profile: Any, layer: int, frames: int, own: Rotation) -> FramePlan:
    """A local window, and a key frame that every frame sees, another one at each step."""
    plan = sliding_window(frames, profile.model.trained_latent_frames)
    visibility = plan.visibility.clone()
    visibility[:, (own.sink + 7 * own.step) % frames] = 2
    return FramePlan(plan.positions.clamp(-20, 20), visibility)


ROTATING = Method("rotating", rotating, settings=Rotation)
