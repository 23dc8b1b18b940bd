"""Writes a draft of an adapter from an inspection. What is written can be imported."""

import re
import textwrap
from dataclasses import fields
from typing import Any

from freeloc.adapter.kernel import Kernel
from freeloc.errors import FreelocError
from freeloc.inspection.argument_search import FoundArguments, FoundTables
from freeloc.inspection.found import FoundSite, Inspection
from freeloc.inspection.rope_search import FoundRope

TEMPLATE = '''"""{title}, from one small model. Check every line: it describes only what was found there.

{report}
"""

{imports}

{kernels}{missing}ADAPTER = Adapter(
    name="{name}",
    family="{name}",
    classes=("{model}",),
    sites=({sites},),
    grid={grid},
    rope={rope},
    heads="{heads}",
    head_dim="{head_dim}",{others}
)

ADAPTERS = [ADAPTER]
'''


def adapter_file(seen: Inspection, name: str | None = None) -> str:
    """The text of a draft of an adapter. What was not found is in comments: ``# A person must add: ...``.

    >>> from freeloc import inspect
    >>> from freeloc.testing import examples
    >>> example = examples("hunyuan-video")[0]
    >>> text = adapter_file(inspect(example.model(), example.inputs(8, 2, 3, 2)))
    >>> 'rope=TemporalRope(channels=8, theta=256.0, tables="image_rotary_emb")' in text
    True

    Args:
        seen: the result of `inspect`.
        name: name of the adapter; by default derived from the class.

    Raises:
        FreelocError: if the token grid was not found, if no path matches only the modules that attend over it, or if
            the file could not be imported.
    """
    if seen.grid is None or not seen.candidates:
        raise FreelocError(f"no adapter can be written for {seen.model}: {'; '.join(seen.unknown)}")
    cls = seen.model.rpartition(".")[2]
    name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", re.sub(r"(Transformer.*|Model)$", "", cls) or cls).lower()
    kernels = _kernels(seen)
    sites = ", ".join(_site(seen, site, kernels) for site in seen.candidates)
    rope = "None" if seen.rope is None else _rope(seen.rope, seen.tables)
    constants = "".join(f"{constant} = {_call(kernel)}\n\n" for constant, (kernel, _) in kernels.items())
    text = TEMPLATE.format(
        title=cls,
        report=str(seen).replace("\\", "\\\\").replace('"""', "'''"),
        imports=_imports(sites, rope, constants, seen),
        kernels=constants,
        missing="".join(f"{_comment(problem)}\n" for problem in seen.unknown),
        name=name,
        model=seen.model,
        sites=sites,
        grid=_grid(seen),
        rope=rope,
        heads=seen.heads or "TODO: an attribute path that holds the number of heads",
        head_dim=seen.head_dim or "TODO: an attribute path that holds the channels per head",
        others=_others(seen),
    )
    try:
        exec(compile(text, f"{name}.py", "exec"), {"__name__": "draft"})
    except Exception as error:  # whatever is wrong with it, a file that cannot be imported is of no use
        raise FreelocError(
            f"no adapter can be written for {seen.model}: a person must add what follows from this error of the draft: "
            f"{error}"
        ) from error
    return text


def _comment(problem: str) -> str:
    return textwrap.fill(f"A person must add: {problem}", 118, initial_indent="# ", subsequent_indent="# ")


def _imports(sites: str, rope: str, kernels: str, seen: Inspection) -> str:
    names = ["Adapter", "AttentionSite", "TokenGrid"]
    names += ["Kernel"] * bool(kernels) + ["MATMUL"] * ("MATMUL" in sites)
    names += ["RunBy"] * (seen.run_by is not None) + ["TemporalRope"] * (rope != "None")
    names.sort(key=lambda name: (not name.isupper(), name))
    return ("import torch\n\n" if "torch.tensor" in rope else "") + f"from freeloc.adapter import {', '.join(names)}"


def _others(seen: Inspection) -> str:
    lines = []
    if seen.other_attention:
        paths = ", ".join(f'"{path}"' for path in seen.other_attention)
        lines.append(f"other_attention=({paths}{',' if len(seen.other_attention) == 1 else ''})")
    if seen.rounding:
        lines.append(f"rounding={seen.rounding!r}")
    if seen.run_by is not None:
        lines.append(f'run_by=RunBy("{seen.run_by.function}", last="{seen.run_by.last}")')
    return "".join(f"\n    {line}," for line in lines)


def _kernels(seen: Inspection) -> dict[str, tuple[Kernel, str]]:
    """The kernels of the candidates that are not PyTorch's, by the name of a constant, each with the name it is for."""
    found: dict[str, tuple[Kernel, str]] = {}
    for site in seen.candidates:
        if site.described is not None and site.described not in [kernel for kernel, _ in found.values()]:
            found[f"ATTENTION_{len(found) + 1}" if found else "ATTENTION"] = site.described, site.path
    return found


def _call(kernel: Kernel) -> str:
    """The kernel as code, a field to a line."""
    lines = []
    for field in fields(kernel):
        value = getattr(kernel, field.name)
        if field.name in ("function", "layout", "arguments", "query", "key", "value") or value:
            lines.append(f"    {field.name}={_code(value)},\n")
    return f"Kernel(\n{''.join(lines)})"


def _code(value: Any) -> str:
    """A value as code, with double quotes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return f"({', '.join(map(_code, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_code(key)}: {_code(item)}' for key, item in value.items())}}}"
    return repr(value)


def _site(seen: Inspection, site: FoundSite, kernels: dict[str, tuple[Kernel, str]]) -> str:
    grid, found = seen.grid, site.arguments or FoundArguments()
    assert grid is not None
    fields = [f'"{site.site}"'] + [f'layers="{site.layers}"'] * bool(site.layers)
    if site.described is not None:
        fields.append(f"kernel={next(name for name, (kernel, _) in kernels.items() if kernel == site.described)}")
    elif site.kernel == "torch.matmul":
        fields.append("kernel=MATMUL")
    if grid.text_first or grid.text_last:
        fields.append(f'text="{"first" if grid.text_first else "last"}"')
        counted = found.text_tokens or "TODO: the argument that counts the text tokens"
        fields.append(f'text_tokens="{counted}"')
    fields += [f'{name}="{value}"' for name in ("text_mask", "hidden_states") if (value := getattr(found, name))]
    fields += ["joint=True"] if found.joint else []
    if grid.tokens[1:] == (1, 1):
        fields.append('tokens="f"')
    return f"AttentionSite({', '.join(fields)})"


def _grid(seen: Inspection) -> str:
    grid = seen.grid
    assert grid is not None
    if grid.source is not None:
        source = grid.source
        names = [f'axes="{source.axes}"'] * (not source.coordinates)
        names += [f"patch={source.patch!r}"] * (source.of != "attention")
        names += [f'of="{source.of}"'] * (source.of != "transformer")
        names += [f'coordinates="{source.coordinates}"'] * bool(source.coordinates)
        return f"TokenGrid({_code(source.argument)}, {', '.join(names)})"
    if not isinstance(grid.argument, str):
        return f"TokenGrid({grid.argument!r}, patch=(1, 1, 1))"
    patch = f'"{seen.patch_path}"' if seen.patch_path else repr(grid.patch)
    return f'TokenGrid("{grid.argument}", axes="{grid.axes}", patch={patch})'


def _rope(rope: FoundRope, tables: FoundTables | None) -> str:
    fields = [f"channels={rope.channels}"]
    if rope.first:
        fields.append(f"first={rope.first}")
    if rope.pairing != "(pair two)":
        fields.append(f'pairing="{rope.pairing}"')
    if rope.within != rope.channels:
        fields.append(f"within={rope.within}")
    if rope.theta is None:
        fields.append(f"frequencies_from=lambda model: torch.tensor({_numbers(rope.by_head.tolist())})")
    else:
        fields.append(f"theta={rope.theta!r}")
        if abs(rope.positions_per_frame - 1) > 1e-4:
            fields.append(f"step=lambda model, given: {rope.positions_per_frame:.7g}")
    if tables is not None:
        fields.append(f'tables="{tables.argument}"')
        if tables.rows != "token":
            fields.append(f'table_rows="{tables.rows}"')
    return f"TemporalRope({', '.join(fields)})"


def _numbers(values: object) -> str:
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda match: f"{float(match.group()):.7g}", str(values))
