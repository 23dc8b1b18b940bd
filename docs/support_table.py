"""Writes README's table of supported models from what the conformance suite finds: python docs/support_table.py"""

import importlib
import sys
from importlib import metadata
from itertools import groupby
from pathlib import Path

from freeloc.errors import FreelocError
from freeloc.inspection.adapter_file import adapter_file
from freeloc.inspection.inspector import inspect
from freeloc.registry import registry
from freeloc.testing import Example, examples, run_checks

ROOT = Path(__file__).parent.parent
START, END = "<!-- written by docs/support_table.py -->\n", "<!-- end of what docs/support_table.py wrote -->\n"
HEAD = (
    "| adapter | model class | checked on small random models of | requirements met | "
    "file of `freeloc inspect`, unedited |\n|---|---|---|---|---|\n"
)
DOUBLES = (
    "wan_double",
    "hunyuan_double",
    "opensora_double",
    "diffsynth_double",
    "fastvideo_double",
    "musubi_double",
    "hunyuan15_double",
    "comfyui_double",
    "wrapper_double",
    "ltx_core_double",
)
REAL = {
    "diffsynth-wan": "diffsynth 2.1.12",
    "diffsynth-wan-vace": "diffsynth 2.1.12",
    "fastvideo-wan": "fastvideo 0.2.1",
    "hunyuan-video-1.5-original": "HunyuanVideo-1.5 6078370",
    "ltx-core": "LTX-2 400fd31",
    "musubi-wan": "musubi-tuner 30c658c",
    "wan-original": "Wan2.2 42bf4cf",
    "wan-original-animate": "Wan2.2 42bf4cf",
    "wan-video-wrapper": "ComfyUI-WanVideoWrapper 721cd65",
}
"""Adapters that tests/runtimes also proves on the real source, and its version; with COMFYUI all that begin so."""
COMFYUI = "ComfyUI 0.30.0"
OF_TESTS = ("cosmos_control",)
"""Files of tests/support with examples of real classes."""


def everything() -> list[tuple[Example, str]]:
    """Every example, and what it is made of."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    real = [*examples(), *(example for name in OF_TESTS for example in importlib.import_module(name).EXAMPLES)]
    found = [(example, f"diffusers {metadata.version('diffusers')}") for example in real]
    for name in DOUBLES:
        found += [(example, double_of(example.adapter)) for example in importlib.import_module(name).EXAMPLES]
    return sorted(found, key=lambda pair: (pair[0].adapter, pair[0].label))


def double_of(adapter: str) -> str:
    """What an example is made of that stands for another repository's model."""
    version = REAL.get(adapter, COMFYUI if adapter.startswith("comfyui-") else "")
    source = f", and its source ({version}) in tests/runtimes" if version else ""
    return f"a double of the original{source}"


def row(name: str, found: list[tuple[Example, str]]) -> str:
    """One line: what the suite finds on all examples of an adapter. A requirement that is not met ends the program."""
    results = [result for example, _ in found for result in run_checks(example)]
    if failed := [result for result in results if not result.passed]:
        raise SystemExit("\n".join(f"{result.example}: {result.check}: {result.problem}" for result in failed))
    reasons = sorted({result.expected for result in results if result.expected})
    met = sum(result.met for result in results)
    classes = ", ".join(f"`{path.rpartition('.')[2]}`" for path in registry().adapters.get(name).classes)
    labels = ", ".join(example.label for example, _ in found)
    notes = f" ({'; '.join(reasons)})" if reasons else ""
    written = sum(passes_as_written(example) for example, _ in found)
    total = len(results)
    return f"| `{name}` | {classes} | {found[0][1]}: {labels} | {met} of {total}{notes} | {written} of {len(found)} |\n"


def passes_as_written(example: Example) -> bool:
    """Whether the file that is written from one look at the model meets every requirement as it is."""
    names: dict[str, object] = {}
    try:
        exec(adapter_file(inspect(example.model(), example.inputs(8, 2, 3, 2), run=example.run)), names)
    except FreelocError:
        return False
    return all(not result.problem for result in run_checks(example, names["ADAPTER"]))  # type: ignore[arg-type]


if __name__ == "__main__":
    page = ROOT / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    lines = []
    for adapter, group in groupby(everything(), key=lambda pair: pair[0].adapter):
        lines.append(row(adapter, list(group)))
        sys.stdout.write(lines[-1])
        sys.stdout.flush()
    page.write_text(before + START + HEAD + "".join(lines) + END + after, encoding="utf-8")
