"""The adapter of the original HunyuanVideo-1.5, on a double of it, end to end against dense logits."""

import sys

import hunyuan15_double
import pytest
from hunyuan15_cases import Cases


@pytest.fixture(autouse=True)
def double():
    names = hunyuan15_double.install()
    yield
    for name in names:
        sys.modules.pop(name, None)


class TestDouble(Cases):
    modes = ("torch", "flash2")
    inputs = staticmethod(hunyuan15_double.inputs)

    @staticmethod
    def make(mode):
        return hunyuan15_double.model(attn_mode=mode)
