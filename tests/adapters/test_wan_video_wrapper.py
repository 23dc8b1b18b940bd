"""The adapter of ComfyUI-WanVideoWrapper's Wan, on a double of it, end to end against dense logits."""

import sys

import pytest
import torch
import wrapper_double
from conftest import make_profile
from wrapper_cases import Cases

import freeloc
from freeloc.errors import LayoutError


@pytest.fixture(autouse=True)
def double():
    names = wrapper_double.install()
    yield
    for name in names:
        del sys.modules[name]


class TestDouble(Cases):
    file = wrapper_double.FILE
    make = staticmethod(wrapper_double.model)
    inputs = staticmethod(wrapper_double.inputs)

    @pytest.mark.parametrize(
        ("radial", "message"),
        [(False, "its attention was called without rotary tables"), (True, "none of the 3 layers that were due")],
    )
    def test_later_versions_are_refused(self, radial, message):
        model = wrapper_double.later(radial)
        short = self.run(model, 4)
        with freeloc.patch(model, make_profile()):
            assert torch.equal(self.run(model, 4), short)
            with pytest.raises(LayoutError, match=message):
                self.run(model, 12)
