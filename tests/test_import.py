"""What importing freeloc loads and changes, in a fresh process."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

# What an import could change. torch is imported before the first snapshot, so its own changes do not count.
LOOK = """
import json, logging, os, random, signal, sys, threading, warnings
import torch
import torch.nn.functional as F

def settings():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
        "efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math attention": torch.backends.cuda.math_sdp_enabled(),
        "attention function": F.scaled_dot_product_attention,
        "seed": torch.get_rng_state().sum().item(),
        "python seed": hash(random.getstate()),
        "print options": vars(torch._tensor_str.PRINT_OPTS),
        "environment": dict(os.environ),
        "warning filters": warnings.filters[:],
        "logging": (logging.root.level, logging.root.handlers),
        "python threads": threading.active_count(),
        "interrupt": signal.getsignal(signal.SIGINT),
        "except hook": sys.excepthook,
    }

before = {name: str(value) for name, value in settings().items()}
STATEMENT
after = {name: str(value) for name, value in settings().items()}
changed = sorted(name for name in before if before[name] != after[name])
print(json.dumps({"changed": changed, "known": sorted(before), "modules": sorted(sys.modules)}))
"""

HEAVY = {"diffusers", "transformers", "peft", "accelerate", "wan", "huggingface_hub"}
PLUGINS = {"freeloc_adapters", "freeloc_profiles"}
CHANGES = """
torch.set_default_device("meta")
torch.set_default_dtype(torch.float64)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.set_num_interop_threads(torch.get_num_interop_threads() + 1)
torch.set_grad_enabled(False)
held = torch.inference_mode()  # ends when its last reference is gone
held.__enter__()
torch.autocast("cpu").__enter__()
torch.use_deterministic_algorithms(True)
torch.set_float32_matmul_precision("medium")
torch.backends.cudnn.benchmark = True
torch.backends.cudnn.deterministic = True
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.enable_mem_efficient_sdp(False)
torch.backends.cuda.enable_math_sdp(False)
F.scaled_dot_product_attention = print
torch.manual_seed(1)
random.seed(1)
torch.set_printoptions(precision=2)
os.environ["FREELOC"] = "1"
warnings.simplefilter("ignore")
logging.basicConfig()
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.signal(signal.SIGINT, print)
sys.excepthook = print
"""


def state_after(statement):
    """What a fresh process has loaded and changed after a statement. The statement must print nothing."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK.replace("STATEMENT", statement)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 1, done.stdout
    return SimpleNamespace(**json.loads(done.stdout))


class TestImport:
    def test_importing_freeloc_changes_nothing_and_loads_no_plugin_and_no_model_library(self):
        seen = state_after("import freeloc")
        assert seen.changed == []
        assert "freeloc.interception.hooks" in seen.modules
        assert (HEAVY | PLUGINS).isdisjoint(seen.modules)

    def test_importing_and_using_the_built_in_plugins_loads_no_model_library(self):
        seen = state_after(
            "import freeloc_adapters, freeloc_profiles, freeloc; freeloc.discovery.adapters(); "
            "freeloc.load_profile('wan2.1')"
        )
        assert seen.changed == []
        assert set(seen.modules) >= PLUGINS
        assert HEAVY.isdisjoint(seen.modules)

    @pytest.mark.slow
    def test_the_checks_above_can_fail(self):
        seen = state_after(f"import freeloc, freeloc_profiles, diffusers\n{CHANGES}")
        assert seen.changed == seen.known
        assert set(seen.modules) >= {"diffusers", "freeloc_profiles"}
