"""Writes what was seen of a model as a file that describes it: a start for whoever adapts it."""

import re

from freeloc.errors import FreelocError
from freeloc.inspection.inspector import Inspection
from freeloc.inspection.rope_search import FoundRope

TEMPLATE = '''"""{title}, as seen in one small model. Check every line: what was not seen is not here.

{report}
"""

{imports}

ADAPTER = Adapter(
    name="{name}",
    family="{name}",
    classes=("{model}",),
    sites=({sites},),
    grid={grid},
    rope={rope},
    heads="{heads}",
    head_dim="{head_dim}",
)

ADAPTERS = [ADAPTER]
'''


def adapter_file(seen: Inspection, name: str | None = None) -> str:
    """The text of an adapter's file.

    >>> from freeloc import inspect
    >>> from freeloc.testing import examples
    >>> example = examples("hunyuan-video")[0]
    >>> text = adapter_file(inspect(example.model(), example.inputs(8, 2, 3, 2)))
    >>> 'rope=TemporalRope(channels=8, theta=256.0)' in text
    True

    Args:
        seen: see `inspect`.
        name: of the adapter; by default from the class.

    Raises:
        FreelocError: if the token grid could not be told, so that an adapter would be guesswork; or if no path names
            the modules that attend over it.
    """
    if seen.grid is None or not seen.candidates:
        raise FreelocError(f"no adapter can be written for {seen.model}: {'; '.join(seen.unknown)}")
    cls = seen.model.rpartition(".")[2]
    name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", re.sub(r"(Transformer.*|Model)$", "", cls) or cls).lower()
    sites = ", ".join(_site(seen, index) for index in range(len(seen.candidates)))
    rope = "None" if seen.rope is None else _rope(seen.rope)
    words = ["Adapter", "AttentionSite", "TemporalRope", "TokenGrid"]
    words = [word for word in words if word != "TemporalRope" or seen.rope]
    if "MATMUL" in sites:
        words.insert(0, "MATMUL")
    imports = ("import torch\n\n" if "torch.tensor" in rope else "") + f"from freeloc.adapter import {', '.join(words)}"
    text = TEMPLATE.format(
        title=cls,
        report=str(seen),
        imports=imports,
        name=name,
        model=seen.model,
        sites=sites,
        grid=_grid(seen),
        rope=rope,
        heads=seen.heads or "TODO: an attribute path that holds the number of heads",
        head_dim=seen.head_dim or "TODO: an attribute path that holds the channels per head",
    )
    compile(text, f"{name}.py", "exec")
    return text


def _site(seen: Inspection, index: int) -> str:
    site, grid = seen.candidates[index], seen.grid
    assert grid is not None
    words = [f'"{site.path}"']
    if site.kernel == "torch.matmul":
        words.append("kernel=MATMUL")
    if grid.text_first or grid.text_last:
        words.append(f'text="{"first" if grid.text_first else "last"}"')
    if grid.tokens[1:] == (1, 1):
        words.append('tokens="f"')
    return f"AttentionSite({', '.join(words)})"


def _grid(seen: Inspection) -> str:
    grid = seen.grid
    assert grid is not None
    if not isinstance(grid.argument, str):
        return f"TokenGrid({grid.argument!r}, patch=(1, 1, 1))"
    patch = f'"{seen.patch_path}"' if seen.patch_path else repr(grid.patch)
    return f'TokenGrid("{grid.argument}", axes="{grid.axes}", patch={patch})'


def _rope(rope: FoundRope) -> str:
    words = [f"channels={rope.channels}"]
    if rope.first:
        words.append(f"first={rope.first}")
    if rope.pairing != "(pair two)":
        words.append(f'pairing="{rope.pairing}"')
    if rope.within != rope.channels:
        words.append(f"within={rope.within}")
    if rope.theta is None:
        speeds = (
            rope.frequencies if (rope.frequencies - rope.frequencies[:1]).abs().max() > 1e-6 else rope.frequencies[0]
        )
        words.append(f"frequencies_from=lambda model: torch.tensor({_numbers(speeds.tolist())})")
    else:
        words.append(f"theta={rope.theta!r}")
        if abs(rope.step - 1) > 1e-4:
            words.append(f"step=lambda model, given: {rope.step:.7g}")
    return f"TemporalRope({', '.join(words)})"


def _numbers(values: object) -> str:
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda match: f"{float(match.group()):.7g}", str(values))
