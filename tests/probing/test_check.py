"""check: the losses of whole profiles are those of the patched model, on the same noise."""

from typing import Any

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from small_probe import PROFILE, clips, run_of

import freeloc
from freeloc.errors import ProbeError, ProfileError
from freeloc.probing import Loss, check, motion_weight


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


def test_whole_profiles_are_measured_on_the_same_noise(model: Any) -> None:
    mixed = make_profile({"vrpr": [0, 2], "vrpr+tsa": [1, 3]})
    depth = Loss(clips(count=3), levels=(0.5, 0.9))
    found = check(model, run_of(model), depth, {"vrpr": PROFILE, "mine": mixed})
    for name, profile in (("vrpr", PROFILE), ("mine", mixed)):
        expected = torch.zeros(2, 3)
        for clip, clean in enumerate(clips(count=3)):
            for level in (0.5, 0.9):
                generator = torch.Generator().manual_seed(1_000_003 * clip + round(1000 * level))
                noise = torch.randn(clean[None].shape, generator=generator)
                given = {"hidden_states": (1 - level) * clean + level * noise, "timestep": torch.tensor([1000 * level])}
                with freeloc.patch(model, profile):
                    error = (model(**wan_inputs(9, batch=1) | given)[0] - (noise - clean)).square()[0]
                expected[:, clip] += torch.stack([error.mean(), (motion_weight(clean) * error).mean()]) / 2
        assert torch.allclose(found.losses[name].float(), expected, rtol=1e-5)
    assert not torch.equal(found.losses["vrpr"], found.losses["mine"])
    title, first, second = str(found).splitlines()
    assert title.split() == ["whole", "frames", "moving", "places", "3", "clips"]
    assert first.split() == ["vrpr", *(f"{value:.4f}" for value in found.losses["vrpr"].mean(dim=1))]
    difference = found.losses["mine"] - found.losses["vrpr"]
    error = difference.std(dim=1) / 3**0.5
    both = [f"{difference.mean(dim=1)[n]:+.5f} ± {error[n]:.5f}" for n in range(2)]
    assert second.split() == ["mine", "minus", "vrpr", *" ".join(both).split()]


def test_what_cannot_be_checked(model: Any) -> None:
    depth = Loss(clips(), levels=(0.5,))
    with pytest.raises(ProbeError, match="expected at least one profile to check, found none"):
        check(model, run_of(model), depth, {})
    with pytest.raises(ProbeError, match="depth loss requires clips"):
        check(model, run_of(model), Loss(), {"mine": PROFILE})
    with pytest.raises(ProfileError, match="does not fit this model"):
        check(model, run_of(model), depth, {"mine": PROFILE, "other": freeloc.load_profile("wan2.1")})
    with pytest.raises(ProbeError, match="expected a run longer than the trained 4 latent frames, found 4"):
        check(model, run_of(model, frames=4), Loss(clips(frames=4)), {"mine": PROFILE})
