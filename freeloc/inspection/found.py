"""What an inspection finds: attention calls, token grid, RoPE, and what a person must add."""

from dataclasses import dataclass, field

from freeloc.adapter.kernel import Kernel
from freeloc.adapter.run_by import RunBy
from freeloc.inspection.argument_search import FoundArguments, FoundTables
from freeloc.inspection.grid_search import FoundGrid
from freeloc.inspection.kernel_search import FoundKernel
from freeloc.inspection.rope_search import FoundRope


@dataclass(frozen=True)
class FoundSite:
    """The calls of modules whose paths differ in one number, and that compute the same function.

    Args:
        path: path of the modules, with ``*`` for the number.
        first: path of the first module.
        calls: number of calls in one forward.
        modules: number of modules that made them.
        query, key: shapes in the first call, (batch, heads, tokens, head_dim).
        kernel: name of the function.
        is_candidate: whether all modules that the path matches attend over the whole token grid.
        arguments: the arguments of the first module that an adapter names, for candidates.
        described: the function, if it is not PyTorch's.
        layers: attribute path of the layers with which the blocks run in parallel, if there is one.
        names_above: how many names shorter the path is of the module that an adapter names, since the module itself
            gets no rotary tables.
    """

    path: str
    first: str
    calls: int
    modules: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    kernel: str
    is_candidate: bool = False
    arguments: FoundArguments | None = None
    described: Kernel | None = None
    layers: str = ""
    names_above: int = 0

    @property
    def site(self) -> str:
        """Path of the modules that an adapter names."""
        return above(self.path, self.names_above)

    @property
    def first_site(self) -> str:
        """Path of the first of them."""
        return above(self.first, self.names_above)


def above(path: str, names: int) -> str:
    """A path without so many names at its end."""
    return ".".join(path.split(".")[: -names or None])


@dataclass
class Inspection:
    """What `inspect` found. Print it, or write it as an adapter with `adapter_file`.

    Args:
        model: qualified name of the model's class.
        sites: all attention calls, grouped.
        grid: the token grid, or None if it was not found.
        rope: the temporal RoPE of the first candidate, or None if no rotation was found.
        tables: its rotary tables, or None if no argument holds tables of this rotation.
        heads, head_dim: attribute paths of the model that hold these numbers, or None.
        patch_path: attribute path that holds the patch size, or None.
        other_attention: paths of modules of the candidates' classes that do not attend over the whole grid.
        kernels: functions that compute attention, by the code that calls them, beside PyTorch's own.
        rounding: how far the model itself rounds; 0 if not more than float32 does.
        run_by: the function that calls the parts of the model, if it was not called itself.
        unknown: what a person must add, and why it was not found.
    """

    model: str
    sites: list[FoundSite]
    grid: FoundGrid | None = None
    rope: FoundRope | None = None
    tables: FoundTables | None = None
    heads: str | None = None
    head_dim: str | None = None
    patch_path: str | None = None
    other_attention: list[str] = field(default_factory=list)
    kernels: list[FoundKernel] = field(default_factory=list)
    rounding: float = 0.0
    run_by: RunBy | None = None
    unknown: list[str] = field(default_factory=list)

    @property
    def candidates(self) -> list[FoundSite]:
        """The sites over the whole grid that an adapter can describe."""
        return [site for site in self.sites if site.is_candidate]

    def __str__(self) -> str:
        lines = [f"{self.model}: {sum(site.calls for site in self.sites)} attention calls in one forward"]
        width = max((len(site.path) for site in self.sites), default=0)
        for site in self.sites:
            mark = "*" if site.is_candidate else " "
            counts = f"{site.calls:3} calls of {site.modules:3} modules"
            shapes = f"queries {site.query}, keys {site.key}"
            beside = f", beside the layers in {site.layers}" if site.layers else ""
            kernel = site.kernel if ":" in site.kernel else site.kernel.rpartition(".")[2]
            lines.append(f"{mark} {site.path:{width}} {counts}, {shapes}, {kernel}{beside}")
        lines.append("* self-attention over the whole token grid")
        lines += self._kernel_lines()
        if self.grid:
            text = f"text: {self.grid.text_first} tokens first, {self.grid.text_last} last"
            lines.append(f"grid: {self.grid.tokens} tokens (frames, rows, columns), patch {self.grid.patch}, {text}")
            if self.grid.source is not None:
                lines.append(f"grid read from: {self.grid.source.argument} of the {self.grid.source_label}")
        counted = [site for site in self.candidates if site.arguments and site.arguments.text_tokens]
        lines += [f"text of {site.path}: {site.arguments}" for site in counted]
        if self.rope:
            base = f"theta {self.rope.theta:g}" if self.rope.theta else "no single base"
            lines.append(
                f"rope: channels {self.rope.first} to {self.rope.first + self.rope.channels - 1} ({self.rope.pairing} "
                f"within {self.rope.within}), {base}, {self.rope.positions_per_frame:g} positions per latent frame, "
                f"error {self.rope.error:.1e}"
            )
        if self.tables:
            lines.append(f"rotary tables: {self.tables.argument}, with a row for each {self.tables.rows}")
        return "\n".join(lines + [f"a person must add: {problem}" for problem in self.unknown])

    def _kernel_lines(self) -> list[str]:
        """The functions that the sites could name, in place of PyTorch's own."""
        own = {site.kernel for site in self.sites}
        lines = []
        for found in self.kernels:
            if found.kernel is None:
                lines.append(f"also computes attention, but is held where no file names it: {found.name}")
            elif found.kernel.function not in own:
                output = f", returns ({found.kernel.output})" if found.kernel.output else ""
                lines.append(f"a kernel that could be named: {found.kernel.function}, ({found.kernel.layout}){output}")
        return list(dict.fromkeys(lines))
