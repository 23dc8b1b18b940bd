"""The adapter of musubi-tuner's Wan, on a double of it, end to end against dense logits."""

import sys

import musubi_double
import pytest
from musubi_cases import Cases


@pytest.fixture(autouse=True)
def double():
    names = musubi_double.install()
    yield
    for name in names:
        del sys.modules[name]


class TestDouble(Cases):
    make = staticmethod(musubi_double.model)
    inputs = staticmethod(musubi_double.inputs)
