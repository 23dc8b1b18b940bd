"""Writes a draft of an adapter from an inspection."""

import re

from freeloc.errors import FreelocError
from freeloc.inspection.argument_search import FoundArguments, FoundTables
from freeloc.inspection.inspector import Inspection
from freeloc.inspection.rope_search import FoundRope

TEMPLATE = '''"""{title}, from one small model. Check every line: it describes only what was found there.

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
    head_dim="{head_dim}",{other_attention}
)

ADAPTERS = [ADAPTER]
'''


def adapter_file(seen: Inspection, name: str | None = None) -> str:
    """The text of a draft of an adapter.

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
        FreelocError: if the token grid was not found, or no path matches only the modules that attend over it.
    """
    if seen.grid is None or not seen.candidates:
        raise FreelocError(f"no adapter can be written for {seen.model}: {'; '.join(seen.unknown)}")
    cls = seen.model.rpartition(".")[2]
    name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", re.sub(r"(Transformer.*|Model)$", "", cls) or cls).lower()
    sites = ", ".join(_site(seen, index) for index in range(len(seen.candidates)))
    others = ", ".join(f'"{path}"' for path in seen.other_attention)
    others += "," if len(seen.other_attention) == 1 else ""
    rope = "None" if seen.rope is None else _rope(seen.rope, seen.tables)
    names = ["Adapter", "AttentionSite", "TemporalRope", "TokenGrid"]
    names = [imported for imported in names if imported != "TemporalRope" or seen.rope]
    if "MATMUL" in sites:
        names.insert(0, "MATMUL")
    imports = ("import torch\n\n" if "torch.tensor" in rope else "") + f"from freeloc.adapter import {', '.join(names)}"
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
        other_attention=f"\n    other_attention=({others})," if others else "",
    )
    compile(text, f"{name}.py", "exec")
    return text


def _site(seen: Inspection, index: int) -> str:
    site, grid = seen.candidates[index], seen.grid
    found = site.arguments or FoundArguments()
    assert grid is not None
    fields = [f'"{site.path}"']
    if site.kernel == "torch.matmul":
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
