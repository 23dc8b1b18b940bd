"""Finding the adapter of a model: classes, subclasses, wrappers, pipelines."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_wan
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from peft import LoraConfig, get_peft_model
from torch import nn

import freeloc
from freeloc.discovery import transformers_of
from freeloc.registry import registry

WRAPPERS = {
    "compiled": torch.compile,
    "LoRA": lambda model: get_peft_model(model, LoraConfig(target_modules=["to_q"])),
    "compiled LoRA": lambda model: torch.compile(get_peft_model(model, LoraConfig(target_modules=["to_q"]))),
    "pipeline": lambda model: SimpleNamespace(transformer=model, vae=nn.Linear(2, 2), scheduler="a text"),
    "components": lambda model: SimpleNamespace(components={"transformer": model, "vae": None}),
}


class TestFindAdapter:
    def test_from_a_model_alone(self, small_wan):
        assert freeloc.discovery.find_adapter(small_wan).name == "wan"
        assert (
            freeloc.discovery.find_adapter(make_wan(cls=WanVACETransformer3DModel, vace_layers=[0])).name == "wan-vace"
        )

    def test_a_subclass_has_the_adapter_of_its_nearest_described_base(self):
        class Mine(WanTransformer3DModel):
            pass

        class MineToo(Mine):
            pass

        assert freeloc.discovery.find_adapter(make_wan(cls=MineToo)).name == "wan"

    def test_a_class_of_the_same_name_from_elsewhere_is_not_described(self):
        class WanTransformer3DModel(nn.Module):
            pass

        with pytest.raises(freeloc.errors.AdapterError, match="no adapter describes this model"):
            freeloc.discovery.find_adapter(WanTransformer3DModel())

    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_inside_wrappers_and_pipelines(self, small_wan, wrapper):
        ((found, adapter),) = transformers_of(WRAPPERS[wrapper](small_wan))
        assert found is small_wan
        assert adapter.name == "wan"

    @pytest.mark.parametrize("wrapper", WRAPPERS)
    def test_find_adapter_looks_inside_too(self, small_wan, wrapper):
        assert freeloc.discovery.find_adapter(WRAPPERS[wrapper](small_wan)).name == "wan"

    def test_every_transformer_of_a_pipeline_once(self, small_wan):
        other = make_wan(cls=WanVACETransformer3DModel, vace_layers=[0])
        pipeline = SimpleNamespace(transformer=small_wan, transformer_2=other, again=small_wan)
        found = transformers_of(pipeline)
        assert [(model is small_wan, adapter.name) for model, adapter in found] == [(True, "wan"), (False, "wan-vace")]

    def test_a_given_adapter_is_the_only_one_looked_for(self, small_wan):
        adapter = freeloc.discovery.find_adapter(make_wan(cls=WanVACETransformer3DModel, vace_layers=[0]))
        with pytest.raises(freeloc.errors.AdapterError, match=r"transformer_wan\.WanTransformer3DModel"):
            transformers_of(small_wan, adapter)

    @pytest.mark.parametrize(
        ("model", "looked_at"),
        [
            (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
            (
                SimpleNamespace(a=nn.ReLU(), b=nn.GELU()),
                "torch.nn.modules.activation.GELU, torch.nn.modules.activation.ReLU",
            ),
            (SimpleNamespace(a=1), "no torch module in types.SimpleNamespace"),
            ("wan", "no torch module in builtins.str"),
            (None, "no torch module in builtins.NoneType"),
        ],
    )
    def test_the_error_for_an_unknown_model_says_what_was_looked_at_and_what_to_do(self, model, looked_at):
        known = f"{len(freeloc.discovery.adapters())}, which 'freeloc adapters' lists"
        message = (
            f"no adapter describes this model. Looked at: {looked_at}. Installed adapters: {known}. "
            "An adapter is one short file, and 'freeloc inspect' writes a first one: see docs/write-an-adapter.md"
        )
        with pytest.raises(freeloc.errors.AdapterError, match=f"^{re.escape(message)}$"):
            transformers_of(model)

    def test_find_adapter_names_the_class_it_looked_at(self):
        with pytest.raises(
            freeloc.errors.AdapterError,
            match=r"Looked at: torch\.nn\.modules\.linear\.Linear\. .*docs/write-an-adapter",
        ):
            freeloc.discovery.find_adapter(nn.Linear(2, 2))


class TestTheEndOfAName:
    """Custom nodes of ComfyUI are modules with an absolute path as their name."""

    WHOLE = "/opt/Comfy UI/custom_nodes/My-Nodes.2.model.MyDiT"

    @pytest.fixture
    def register(self, monkeypatch):
        from freeloc_toy.adapter import TOY

        def register(**classes):
            owners = {
                name: [("here", replace(TOY, name=name, classes=paths, exact=name == "exact"))]
                for name, paths in classes.items()
            }
            monkeypatch.setattr(registry().adapters, "owners", owners)

        return register

    @staticmethod
    def model(name=WHOLE, base=nn.Module):
        module, _, cls = name.rpartition(".")
        return type(cls, (base,), {"__module__": module})()

    @pytest.mark.parametrize("path", ["*.model.MyDiT", "*.2.model.MyDiT", WHOLE])
    def test_it_describes_the_class_wherever_its_package_is(self, register, path):
        register(mine=(path,))
        assert freeloc.discovery.find_adapter(self.model()).name == "mine"

    def test_it_has_whole_names_before_the_first_dot(self, register):
        register(mine=("*.model.MyDiT",))
        for other in ("a.other_model.MyDiT", "a.model.NotMyDiT", "a.model.MyDiT.Inner", "model.YourDiT"):
            with pytest.raises(freeloc.errors.AdapterError, match="no adapter describes this model"):
                freeloc.discovery.find_adapter(self.model(other))

    def test_a_whole_name_comes_first(self, register):
        register(by_end=("*.model.MyDiT",), whole=(self.WHOLE,))
        assert freeloc.discovery.find_adapter(self.model()).name == "whole"
        assert freeloc.discovery.find_adapter(self.model("elsewhere.model.MyDiT")).name == "by_end"

    def test_a_nearer_class_comes_before_a_whole_name(self, register):
        register(by_end=("*.model.MyDiT",), whole=("base.model.Base",))
        assert freeloc.discovery.find_adapter(self.model(base=type(self.model("base.model.Base")))).name == "by_end"

    def test_two_ends_are_an_error_that_names_both(self, register):
        register(left=("*.model.MyDiT",), right=("*.2.model.MyDiT",))
        with pytest.raises(
            freeloc.errors.RegistryError,
            match=r"described by the adapters \['left', 'right'\], by the ends \*\.model\.MyDiT, \*\.2\.model\.MyDiT "
            r"of the name of its class /opt/Comfy UI/.*: pass adapter= to choose",
        ):
            freeloc.discovery.find_adapter(self.model())

    def test_an_exact_one_does_not_describe_subclasses(self, register):
        register(exact=("*.model.MyDiT",))
        assert freeloc.discovery.find_adapter(self.model()).name == "exact"
        with pytest.raises(freeloc.errors.AdapterError, match="no adapter describes this model"):
            freeloc.discovery.find_adapter(self.model("a.b.Sub", type(self.model())))
