"""The script that patches the transformers of another project's own script: docs/examples/original-repositories."""

import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import wan_double

import freeloc

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "original-repositories" / "long_video.py"

GENERATE = """
import sys
from wan.text2video import WanT2V, load_models, outputs

import torch
import wan_double

frames = int(sys.argv[sys.argv.index("--frame_num") + 1])
holder = WanT2V() if "method" in sys.argv else load_models()[0]
run = holder.generate if "method" in sys.argv else holder
outputs.append(run(**wan_double.inputs(frames, 3, 4, 1))[0])
"""


class WanT2V:
    """As in the original repository: an object that holds two transformers, and other things."""

    def __init__(self):
        self.low_noise_model, self.high_noise_model = wan_double.model(), wan_double.model()
        self.vae, self.device = object(), torch.device("cpu")

    def generate(self, **inputs):
        with torch.no_grad():
            return [a + b for a, b in zip(self.low_noise_model(**inputs), self.high_noise_model(**inputs), strict=True)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with generate.py, the modules that it imports, and a profile."""
    names = wan_double.install()
    module = types.ModuleType("wan.text2video")
    module.WanT2V, module.outputs = type("WanT2V", (WanT2V,), {"generate": WanT2V.generate}), []
    module.load_models = lambda: (wan_double.model(), "vae")
    sys.modules["wan.text2video"] = module
    (tmp_path / "generate.py").write_text(GENERATE)
    freeloc.default_profile(wan_double.model(), trained_latent_frames=3).save(tmp_path / "profile.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield module
    for name in [*names, "wan.text2video"]:
        sys.modules.pop(name, None)


def main(*arguments):
    runpy.run_path(str(SCRIPT))["main"](*arguments)


@pytest.mark.parametrize(
    ("where", "how", "models"),
    [("wan.text2video:WanT2V.generate", "method", 2), ("wan.text2video:load_models", "function", 1)],
)
@pytest.mark.parametrize("frames", [3, 9])
def test_the_script_runs_with_patched_transformers(project, capsys, where, how, models, frames):
    main("profile.json", where, "generate.py", "--frame_num", str(frames), how)
    said = capsys.readouterr().err
    inputs, plain, corrected = wan_double.inputs(frames, 3, 4, 1), wan_double.model(), wan_double.model()
    with torch.no_grad():
        alone = plain(**inputs)[0] * models
        with freeloc.patch(corrected, profile="profile.json"):
            expected = corrected(**inputs)[0] * models
    assert torch.allclose(project.outputs[0], expected, atol=1e-6)
    assert torch.allclose(expected, alone, atol=1e-6) == (frames == 3)
    assert f"forward passes: 1 at {frames} latent frames" in said
    assert said.count("forward passes") == models


@pytest.mark.slow
def test_without_arguments_it_says_how_it_is_called():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "long_video.py PROFILE WHERE SCRIPT" in done.stderr
