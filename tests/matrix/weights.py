"""Weights of other kinds.

Quantised by torchao, optimum-quanto, bitsandbytes and GGUF; fused projections; weight_norm. A CPU runs all of them.
"""

import tempfile
from typing import Any

import torch
from torch import nn

from .cell import Apply, Case, Cell, Exact, Fails, Refused, applied, difference

TWO = ("wan", "hunyuan-video")


def in_blocks(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear) and "blocks" in path


def torchao(name: str, **options: Any) -> Apply:
    def apply(model: Any) -> None:
        import torchao.quantization as quantization

        quantization.quantize_(model, getattr(quantization, name)(**options), filter_fn=in_blocks)

    return apply


def quanto(weights: str, activations: str | None = None, streamline: bool = False) -> Apply:
    def apply(model: Any) -> None:
        import optimum.quanto as quantization

        kinds = {"weights": getattr(quantization, weights)}
        if activations:
            kinds["activations"] = getattr(quantization, activations)
        quantization.quantize(model, **kinds, include=["*blocks*"])
        quantization.freeze(model)

    return apply


def bitsandbytes(bits: int) -> Apply:
    def apply(model: Any) -> None:
        import bitsandbytes as bnb

        for path, module in list(model.named_modules()):
            if in_blocks(module, path):
                sizes = module.in_features, module.out_features, module.bias is not None
                if bits == 8:
                    new: Any = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
                    new.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
                else:
                    new = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
                    new.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
                new.bias = module.bias
                owner, _, name = path.rpartition(".")
                setattr(model.get_submodule(owner), name, new.to("cpu"))

    return apply


def loaded(config: Any, family_folder: Any = None) -> Any:
    """A model that diffusers quantises while it loads it."""

    def body(case: Case) -> Exact:
        with tempfile.TemporaryDirectory() as folder:
            case.model.save_pretrained(folder)
            model = (
                type(case.model).from_pretrained(folder, quantization_config=config(), torch_dtype=torch.float32).eval()
            )
        plain, expected = case.of(model)
        with case.patch(model):
            found = case.run(model)
        assert difference(plain, case.plain()) > 1e-4  # the weights are others
        return Exact(difference(found, expected), difference(plain, expected))

    return body


def of_torchao() -> Any:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def of_quanto() -> Any:
    from diffusers import QuantoConfig

    return QuantoConfig(weights_dtype="int8")


def gguf(case: Case) -> Exact:
    """Weights in blocks of 32 values of 8 bits."""
    import numpy as np
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
    from gguf import GGMLQuantizationType, quants

    def apply(model: Any) -> None:
        kind = GGMLQuantizationType.Q8_0
        for path, module in list(model.named_modules()):
            if in_blocks(module, path) and module.in_features % 32 == 0:
                new = GGUFLinear(module.in_features, module.out_features, True, compute_dtype=torch.float32)
                packed = quants.quantize(np.asarray(module.weight.detach()), kind)
                new.weight = GGUFParameter(torch.from_numpy(packed), requires_grad=False, quant_type=kind)
                new.bias = module.bias
                owner, _, name = path.rpartition(".")
                setattr(model.get_submodule(owner), name, new)

    twin = case.new_model()
    apply(twin)
    plain, expected = case.of(twin)
    assert difference(plain, case.plain()) > 1e-4
    patch = None if case.order == "before" else case.patch()
    apply(case.model)
    with patch or case.patch():
        found = case.run()
    return Exact(difference(found, expected), difference(plain, expected))


def fused(model: Any) -> None:
    model.fuse_qkv_projections()


def fused_and_not(case: Case) -> Exact:
    """Fused under the patch, and unfused under it."""
    with case.patch():
        case.model.fuse_qkv_projections()
        one = case.exact(case.run())
        case.model.unfuse_qkv_projections()
        other = case.exact(case.run())
    assert difference(case.run(), case.plain()) <= 2e-5
    return max(one, other)


def normed(model: Any) -> None:
    for name, module in model.named_modules():
        if name.endswith("to_q"):
            torch.nn.utils.parametrizations.weight_norm(module)


def other_weights(case: Case) -> Exact:
    """load_state_dict while the model is patched."""
    other = {name: value * 1.1 for name, value in case.model.state_dict().items()}
    twin = case.new_model()
    twin.load_state_dict(other)
    plain, expected = case.of(twin)
    with case.patch() as patch:
        assert patch is not None
        case.model.load_state_dict(other)
        return Exact(difference(case.run(), expected), difference(plain, expected))


NOT_FUSED = {"ltx-2": Fails("Sizes of tensors must match|has no attribute")}
AO, QUANTO, BNB = ("torchao",), ("optimum-quanto", "ninja"), ("bitsandbytes",)


CELLS = [
    applied("torchao Int8WeightOnlyConfig", torchao("Int8WeightOnlyConfig"), changes=True, families=TWO, needs=AO),
    applied(
        "torchao Int8DynamicActivationInt8WeightConfig",
        torchao("Int8DynamicActivationInt8WeightConfig"),
        changes=True,
        families=TWO,
        needs=AO,
        moves=True,
    ),
    applied("torchao Float8WeightOnlyConfig", torchao("Float8WeightOnlyConfig"), changes=True, families=TWO, needs=AO),
    applied(
        "torchao Float8DynamicActivationFloat8WeightConfig",
        torchao("Float8DynamicActivationFloat8WeightConfig"),
        families=TWO,
        needs=AO,
        expects=Fails("requires CUDA compute capability"),
    ),
    applied(
        "torchao IntxWeightOnlyConfig, 4 bits",
        torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
        changes=True,
        families=TWO,
        needs=AO,
    ),
    applied("optimum-quanto qint8 weights", quanto("qint8"), changes=True, families=TWO, needs=QUANTO),
    applied("optimum-quanto qfloat8 weights", quanto("qfloat8"), changes=True, families=TWO, needs=QUANTO),
    applied(
        "optimum-quanto qint8 weights and activations, not calibrated",
        quanto("qint8", "qint8"),
        changes=True,
        families=("wan",),
        needs=QUANTO,
        expects=Refused("LayoutError: .*tokens reach its kernel in another order"),
    ),
    applied("bitsandbytes Linear8bitLt", bitsandbytes(8), changes=True, families=("wan",), needs=BNB),
    applied("bitsandbytes Linear4bit, nf4", bitsandbytes(4), changes=True, families=("wan",), needs=BNB),
    Cell("diffusers TorchAoConfig, int8", loaded(of_torchao), families=("wan",), needs=AO),
    Cell("diffusers QuantoConfig, int8", loaded(of_quanto), families=("wan",), needs=QUANTO),
    Cell("GGUF, Q8_0", gguf, families=("wan",), orders=("before", "after"), needs=("gguf",)),
    applied("model.fuse_qkv_projections()", fused, but=NOT_FUSED, quick=("wan",)),
    Cell("fused and unfused under a patch", fused_and_not, but=NOT_FUSED),
    applied("weight_norm on to_q", normed),
    Cell("load_state_dict under a patch", other_weights, quick=("cogvideox-1.5",)),
]
