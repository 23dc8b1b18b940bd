"""LoRA: PEFT through diffusers and by itself.

Adapters that are added, scaled, fused, swapped and deleted while the model is patched; and hooks of others beside them.
"""

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor

from .cell import LONG, Case, Cell, Exact, applied, difference, worst

TARGETS = ["to_q", "to_k", "to_v"]
OF_FILE: dict[str, Any] = {"prefix": None, "weight_name": "pytorch_lora_weights.safetensors"}


def config(rank: int = 4) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, init_lora_weights=False)


def add(model: Any, name: str = "a", seed: int = 1) -> None:
    torch.manual_seed(seed)
    model.add_adapter(config(), adapter_name=name)
    model.requires_grad_(False).eval()


def step_by_step(case: Case) -> Exact:
    """The patched model is compared with the oracle on a copy without a patch after each step."""
    steps = {
        "add a": lambda model: add(model, "a"),
        "add b": lambda model: add(model, "b", 2),
        "set both": lambda model: model.set_adapters(["a", "b"], [0.7, 0.3]),
        "disable": lambda model: model.disable_adapters(),
        "enable": lambda model: model.enable_adapters(),
        "only a": lambda model: model.set_adapters("a"),
        "fuse": lambda model: model.fuse_lora(adapter_names=["a"]),
        "unfuse": lambda model: model.unfuse_lora(),
        "delete b": lambda model: model.delete_adapters("b"),
        "delete a": lambda model: model.delete_adapters("a"),
    }
    twin, found, effects = case.new_model(), [], 0
    with case.patch():
        for step in steps.values():
            step(twin)
            step(case.model)
            plain, expected = case.of(twin)
            effects += difference(plain, case.plain()) > 1e-2
            found.append(Exact(difference(case.run(), expected), difference(plain, expected)))
    assert effects >= 7
    assert difference(case.run(), case.plain()) <= 2e-5
    return worst(found)


def lora_file(case: Case, seed: int, folder: str) -> str:
    other = case.new_model()
    add(other, "default", seed)
    other.save_lora_adapter(f"{folder}/{seed}", adapter_name="default")
    return f"{folder}/{seed}"


def swapped(compiled: bool) -> Any:
    """A file is loaded, and its weights are exchanged for those of another file."""

    def body(case: Case) -> Exact:
        found = []
        with tempfile.TemporaryDirectory() as folder:
            files = [lora_file(case, seed, folder) for seed in (1, 2)]
            if compiled:
                case.model.enable_lora_hotswap(target_rank=4)
            case.model.load_lora_adapter(files[0], adapter_name="x", **OF_FILE)
            if compiled:
                case.model.compile(backend="eager")
            with case.patch():
                for number, file in enumerate(files):
                    if number:
                        case.model.load_lora_adapter(file, adapter_name="x", **OF_FILE, hotswap=True)
                    twin = case.new_model()
                    twin.load_lora_adapter(file, adapter_name="x", **OF_FILE)
                    plain, expected = case.of(twin)
                    assert difference(plain, case.plain()) > 1e-2
                    found.append(Exact(difference(case.run(), expected), difference(plain, expected)))
        return worst(found)

    return body


def wrapped(part: str) -> Any:
    """A model that PEFT wraps; the patch is given the wrapper, or what is in it."""

    def apply(model: Any) -> Any:
        from peft import get_peft_model

        torch.manual_seed(1)
        outer = get_peft_model(model, config()).requires_grad_(False).eval()
        return {"PeftModel": outer, "LoraModel": outer.base_model, "the model in it": model}[part]

    return apply


def merged(case: Case) -> Exact:
    """merge_and_unload under a patch."""
    from peft import get_peft_model

    torch.manual_seed(1)
    outer = get_peft_model(case.model, config()).requires_grad_(False).eval()
    twin = copy.deepcopy(outer).merge_and_unload()
    plain, expected = case.of(twin)
    assert difference(plain, case.plain()) > 1e-2
    with case.patch(outer):
        whole = outer.merge_and_unload()
        result = Exact(difference(case.run(whole), expected), difference(plain, expected))
    assert difference(case.run(whole), plain) <= 2e-5
    return result


def hook_on_to_q(when: str) -> Any:
    """A hook of the user on to_q, which changes its output, registered before or after the LoRA."""

    def apply(model: Any) -> None:
        def double(module: Any, given: Any, output: Tensor) -> Tensor:
            return output * 1.5

        def register() -> None:
            for name, module in list(model.named_modules()):
                if name.endswith("to_q"):
                    module.register_forward_hook(double)

        if when == "before":
            register()
        add(model)
        if when == "after":
            register()

    return apply


def trained(case: Case) -> Exact:
    """Gradients of the LoRA weights through the patched model, and through the oracle."""
    twin = case.new_model()
    for model in (twin, case.model):
        torch.manual_seed(1)
        model.add_adapter(config(), adapter_name="a")

    def gradients(model: Any) -> dict[str, Tensor]:
        model.zero_grad()
        out = model(**case.inputs())
        (out[0] if isinstance(out, tuple) else next(iter(out.values()))).square().mean().backward()
        found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        assert found
        return found

    plain = gradients(twin)
    with case.oracle(twin, LONG):
        expected = gradients(twin)
    with case.patch():
        found = gradients(case.model)
    assert set(found) == set(expected) == set(plain)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return Exact(
        max(difference(found[name], expected[name]) for name in expected) / largest,
        max(difference(plain[name], expected[name]) for name in expected) / largest,
        "of the largest gradient",
    )


CELLS = [
    applied("model.add_adapter", add, changes=True, quick=("wan", "ltx-2")),
    Cell("add, add, set_adapters, disable, enable, fuse, unfuse, delete", step_by_step),
    Cell("load_lora_adapter, then hotswap=True", swapped(False), families=("wan", "hunyuan-video")),
    Cell("enable_lora_hotswap, compiled, then hotswap=True", swapped(True), families=("wan",)),
    *[
        applied(f"get_peft_model, patched as {part}", wrapped(part), changes=True)
        for part in ("PeftModel", "LoraModel", "the model in it")
    ],
    Cell("merge_and_unload under a patch", merged),
    applied("a hook on to_q, then LoRA", hook_on_to_q("before"), changes=True),
    applied("LoRA, then a hook on to_q", hook_on_to_q("after"), changes=True),
    Cell("a training step of LoRA: its gradients", trained, tolerance=1e-4),
]
