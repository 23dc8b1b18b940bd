"""The model alone: lengths, sizes and calls.

Other sizes, batches, and calls that do not come through the model's hooks.
"""

import contextlib
import gc
import warnings
import weakref
from typing import Any

import torch

import freeloc
from freeloc.testing import random_model

from .cell import GRID, LONG, SHORT, TRAINED, Case, Cell, Exact, Fails, Refused, applied, difference, video, worst


def lengths_in_turn(case: Case) -> Exact:
    every = (9, 16, 3, 9, 12, 1, 16)
    with case.patch():
        found = {(at, frames): case.run(frames=frames) for at, frames in enumerate(every)}
    pairs = [(case.of(case.new_model(), frames), output) for (_, frames), output in found.items() if frames > TRAINED]
    for (_, frames), output in found.items():
        if frames <= TRAINED:
            assert torch.equal(output, case.run(frames=frames))
    return worst(
        [Exact(difference(output, right), difference(*pair)) for (pair, output) in pairs for right in pair[1:]]
    )


def other_calls(frames: int = LONG, batch: int = 2, grid: tuple[int, int] = (2, 3)) -> Any:
    def body(case: Case) -> Exact:
        given = case.inputs(frames, batch, grid)
        with torch.no_grad():
            plain = video(case.model, given)
            with case.oracle(case.model, frames, grid):
                expected = video(case.model, given)
            with case.patch():
                return Exact(difference(video(case.model, given), expected), difference(plain, expected))

    return body


def of_one_frame(case: Case) -> Exact:
    """Trained on two latent frames: one frame is left alone, three are corrected."""
    case.profile = freeloc.default_profile(case.model, "vrpr+tsa", 2)
    with case.patch():
        assert torch.equal(case.run(frames=1), case.plain(1))
        found = case.run(frames=3)
    with case.oracle(case.model, 3):
        expected = case.run(frames=3)
    return Exact(difference(found, expected), difference(case.plain(3), expected))


def by_reference(case: Case, model: Any, frames: int, grid: tuple[int, int]) -> Exact:
    """Compared with the backend `reference`, where the oracle would take minutes."""
    profile = freeloc.default_profile(model, "vrpr+tsa", TRAINED)
    given = case.inputs(frames, 1, grid)
    found = []
    with torch.no_grad():
        plain = video(model, given)
        for backend in ("reference", "auto"):
            with freeloc.patch(model, profile, backend=backend):
                found.append(video(model, given))
    return Exact(difference(found[1], found[0]), difference(plain, found[0]), "compared with the backend reference")


def thousand_frames(case: Case) -> Exact:
    return by_reference(case, case.model, 1000, (1, 1))


def wide_heads(case: Case) -> Exact:
    from diffusers import WanTransformer3DModel
    from freeloc_adapters.examples import wan

    sizes = wan.SIZES | {"attention_head_dim": 1024, "num_attention_heads": 1, "num_layers": 1, "ffn_dim": 8}
    return by_reference(case, random_model(lambda: WanTransformer3DModel(**sizes)), LONG, GRID)


def dropped(case: Case) -> Exact:
    """A patch that nobody removes, on a model that nobody keeps."""
    model = case.new_model()
    case.patch(model)
    result = case.exact(case.run(model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    return result


def warned(case: Case) -> Exact:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with case.patch():
            return case.exact(case.run())


def forward_by_hand(before: int, then: int) -> Any:
    """The hooks of the model do not run in model.forward: the grid of the call before must not be taken."""

    def body(case: Case) -> Exact:
        with case.patch():
            case.run(frames=before)
            return case.exact(case.run(case.model.forward, then), then)

    return body


def after_an_exception(case: Case) -> Exact:
    """Each kind of error, raised in the second layer by a hook of the user; then the model is right."""
    found = []
    attention = [module for name, module in case.model.named_modules() if name.endswith("to_k")][1]
    kinds = (RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, MemoryError, RecursionError)
    for kind in (*kinds, torch.OutOfMemoryError):

        def fail(module: Any, args: Any, kind: type[BaseException] = kind) -> None:
            raise kind("by the user")

        with case.patch():
            hook = attention.register_forward_pre_hook(fail)
            with contextlib.suppress(BaseException):
                case.run()
                raise AssertionError("no error was raised")
            hook.remove()
            found.append(case.exact(case.run()))
        assert torch.equal(case.run(), case.plain())
    return worst(found)


def in_a_generator(case: Case) -> Exact:
    """The block is left when the generator is closed."""

    def generate() -> Any:
        with case.patch():
            yield case.run()

    running = generate()
    result = case.exact(next(running))
    running.close()
    assert torch.equal(case.run(), case.plain())
    return result


def inference(case: Case) -> Exact:
    with torch.inference_mode(), case.patch():
        found = video(case.model, case.inputs())
    return case.exact(found)


def determined(case: Case) -> Exact:
    torch.use_deterministic_algorithms(True)
    try:
        with case.patch():
            return case.exact(case.run())
    finally:
        torch.use_deterministic_algorithms(False)


def on_meta(case: Case) -> Exact:
    """Patched before its weights are loaded, as by accelerate.init_empty_weights."""
    from accelerate import init_empty_weights

    weights = case.model.state_dict()
    with init_empty_weights():
        model = type(case.model).from_config(case.model.config).eval()
    with case.patch(model) as patch:
        model.load_state_dict(weights, assign=True)
        result = case.exact(case.run(model))
        assert patch.report().corrected_calls
    return result


def shapes_only(case: Case) -> Exact:
    """A run on the meta device, where tensors have no values."""
    model = case.model.to("meta")
    given = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in case.inputs().items()
    }
    if "image_rotary_emb" in given:
        given["image_rotary_emb"] = tuple(table.to("meta") for table in given["image_rotary_emb"])
    with case.patch(), torch.no_grad():
        assert video(model, given).shape == case.plain().shape
    return Exact(0.0, float("inf"), "only shapes are compared")


def in_fake_mode(case: Case) -> Exact:
    """A run of shapes, which may fail, and then a real one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with case.patch():
        with contextlib.suppress(Exception), FakeTensorMode(allow_non_fake_inputs=True):
            case.run()
        return case.exact(case.run())


def two_models_nested(case: Case) -> Exact:
    """Another patched model runs inside a block of this one."""
    other = case.new_model()
    inner = []
    with case.patch(), case.patch(other):
        block = next(module for name, module in case.model.named_modules() if name.endswith("blocks.1"))
        hook = block.register_forward_pre_hook(lambda *_: inner.append(case.run(other, 12)) and None)
        outer = case.exact(case.run())
        hook.remove()
    return worst([outer, case.exact(inner[0], 12)])


CELLS = [
    applied("nothing else", lambda model: None, orders=(), quick=("wan", "hunyuan-video", "cogvideox-1.5", "ltx-2")),
    Cell("latent frames 9, 16, 3, 9, 12, 1, 16 in turn", lengths_in_turn),
    Cell("another grid", other_calls(grid=(3, 2))),
    Cell("a batch of 3", other_calls(batch=3)),
    Cell("a batch of 1", other_calls(batch=1)),
    Cell("a batch of 0", other_calls(batch=0), expects=Fails("reshape|0 elements|size|numel")),
    Cell("1 latent frame, trained on 2", of_one_frame),
    Cell("1,000 latent frames of 1 token", thousand_frames, families=("wan", "cogvideox-1.5")),
    Cell("head_dim 1024", wide_heads, families=("wan",)),
    Cell("torch.inference_mode", inference),
    Cell("torch.use_deterministic_algorithms(True)", determined),
    Cell("warnings are errors", warned),
    Cell("a patch that is dropped with its model", dropped, families=("wan",)),
    Cell("model.forward(...), 9 frames, then 16", forward_by_hand(LONG, 16), expects=Refused("Call model")),
    Cell("model.forward(...), 16 frames, then 9", forward_by_hand(16, LONG), expects=Refused("Call model")),
    Cell("model.forward(...), 3 frames, then 9", forward_by_hand(SHORT, LONG), expects=Refused("Call model")),
    Cell("an error of any kind inside attention, then another run", after_an_exception, quick=("wan",)),
    Cell("a with block in a generator that is closed", in_a_generator),
    Cell("patched under init_empty_weights, then load_state_dict", on_meta),
    Cell("a run on the meta device", shapes_only),
    Cell("FakeTensorMode, then a real run", in_fake_mode),
    Cell("another patched model inside a block", two_models_nested),
]
