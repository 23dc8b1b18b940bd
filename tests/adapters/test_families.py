"""Every family, real classes of diffusers at small sizes, end to end against the oracle of dense.py."""

import functools
from types import SimpleNamespace

import pytest
import torch
from dense import oracle
from families import FACTS
from freeloc_adapters import examples
from lengths import plan_of_call

import freeloc

EXAMPLES = {example.label: example for example in examples.EXAMPLES}
POLICIES = ["vrpr", "tsa", "vrpr+tsa"]
TRAINED = 4
WITHOUT_ROPE = {name for name, facts in FACTS.items() if not facts.rotary}
"""Models whose positions cannot be re-encoded: VRPR is refused."""

every_family = pytest.mark.parametrize("name", list(EXAMPLES))
every_policy = pytest.mark.parametrize(
    ("name", "policy"),
    [(name, policy) for name in EXAMPLES for policy in POLICIES if "vrpr" not in policy or name not in WITHOUT_ROPE],
)


@functools.cache
def model_of(name):
    return EXAMPLES[name].model()


def profile_of(name, policy):
    """One policy, or all policies alternating over the layers."""
    model = model_of(name)
    shape = freeloc.discovery.find_adapter(model).shape(model)
    every = ("tsa", "none") if name in WITHOUT_ROPE else ("vrpr+tsa", "balanced", "vrpr", "tsa", "none")
    policies = every if policy == "mixed" else [policy]
    layers = {name: list(range(shape.layers))[index :: len(policies)] for index, name in enumerate(policies)}
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=TRAINED)
    return profile.model_copy(update={"layers": layers})


def run(model, inputs):
    with torch.no_grad():
        output = model(**inputs)
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))


def compare(name, policy, frames, height=2, width=3, batch=2):
    model, inputs = model_of(name), EXAMPLES[name].inputs(frames, height, width, batch)
    profile = profile_of(name, policy)
    before = run(model, inputs)
    facts = FACTS[name]

    def plan(layer, count):
        return plan_of_call(profile, layer, count, facts.spacing, facts.references)

    with oracle(model, facts, plan, frames, height, width):
        expected = run(model, inputs)
    with freeloc.patch(model, profile) as patch:
        found = run(model, inputs)
    return SimpleNamespace(before=before, expected=expected, found=found, report=patch.report())


def all_slow(values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@every_family
@pytest.mark.parametrize("frames", [3, 16, *all_slow([4, 6, 9])])
def test_all_policies_equal_the_oracle_at_1x_to_4x(name, frames):
    check_equals_the_oracle(name, "mixed", frames)


@every_policy
@pytest.mark.parametrize("frames", [9, *all_slow([3, 4, 6, 16])])
def test_each_policy_equals_the_oracle(name, policy, frames):
    check_equals_the_oracle(name, policy, frames)


def check_equals_the_oracle(name, policy, frames):
    runs = compare(name, policy, frames)
    assert (runs.found - runs.expected).abs().max() <= FACTS[name].tolerance
    if frames > 2 * TRAINED:
        assert (runs.found - runs.before).abs().max() > 1e-3


@every_family
@pytest.mark.parametrize(
    ("height", "width"), [(1, 7), *(pytest.param(*grid, marks=pytest.mark.slow) for grid in [(1, 1), (5, 3)])]
)
def test_any_grid(name, height, width):
    runs = compare(name, "mixed", 9, height, width)
    assert (runs.found - runs.expected).abs().max() <= FACTS[name].tolerance


@pytest.mark.parametrize("name", sorted(WITHOUT_ROPE & EXAMPLES.keys()))
@pytest.mark.parametrize("policy", ["vrpr", "vrpr+tsa", "balanced"])
def test_positions_of_a_model_without_rope_are_refused(name, policy):
    with pytest.raises(freeloc.errors.PatchError, match="no rotary embedding over time"):
        freeloc.patch(model_of(name), profile_of(name, policy))


@every_family
def test_the_oracle_itself_is_the_model_where_nothing_is_corrected(name):
    runs = compare(name, "none", 9)
    assert (runs.expected - runs.before).abs().max() <= FACTS[name].tolerance
