"""The models that `freeloc bench` compares methods on, behind one interface."""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from freeloc.errors import FreelocError
from freeloc.metrics.measures import MEASURES
from freeloc.probing.denoising import Objective, objective_of
from freeloc.profile.files import load_profile
from freeloc.profile.schema import Profile
from freeloc.tiny import measures, model, synthetic
from freeloc.tiny.film import footage
from freeloc.tiny.film import model as film

Part = Literal["tune", "test"]
"""``"tune"`` for choosing, ``"test"`` for reporting: no clip is in both."""

AfterStep = Callable[[int], None]
"""Called after each denoising step with the number of the step."""

Measure = Callable[[Tensor, str], float]
"""(video (3, frames, height, width) in 0..1, prompt) -> measure."""


class TinyModel(ABC):
    """A small trained model, its profile, and true clips of any length to compare with.

    Videos are (clips, 3, latent_frames, height, width) in 0..1. Latents have the axes of the transformer's input.
    """

    name: ClassVar[str]
    """Name of the model, and of its profile."""

    trained_frames: ClassVar[int]
    """Latent frames of a training clip."""

    axes: ClassVar[str]
    """Names of the axes of one clip's latents: channels c, frames f, rows h, columns w."""

    steps: ClassVar[int]
    """Denoising steps in the bench."""

    guidance: ClassVar[float]
    """Scale of classifier-free guidance in the bench; 1 means none."""

    most_clips: ClassVar[int]
    """Number of true clips in each part."""

    measures: ClassVar[dict[str, Measure]]
    """All measures of one video."""

    motion: ClassVar[str]
    """The measure of motion that is drawn against drift."""

    made_from: ClassVar[tuple[ModuleType | Path, ...]]
    """The weights, and the code and files of the true clips."""

    @property
    def profile(self) -> Profile:
        """The shipped profile."""
        return load_profile(self.name)

    @functools.cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline, loaded once in each process."""
        return self.load()

    @property
    def transformer(self) -> nn.Module:
        """The transformer of `pipeline`."""
        found: nn.Module = self.pipeline.transformer
        return found

    @property
    def objective(self) -> Objective:
        """How the model was trained: how noise is mixed in, and what it predicts."""
        return objective_of(self.pipeline)

    def long_frames(self, times: int) -> int:
        """Latent frames of a video of `times` trained lengths, where each continues from the last frame before.

        >>> model_named("tiny-wan").long_frames(4), model_named("tiny-film").long_frames(4)
        (81, 49)
        """
        return times * (self.trained_frames - 1) + 1

    @property
    def frames_axis(self) -> int:
        """Axis of the frames in latents."""
        return 1 + self.axes.split().index("f")

    def true_clips(self, clips: Sequence[int], latent_frames: int, part: Part = "test") -> Tensor:
        """True clips by number.

        >>> model_named("tiny-film").true_clips([0, 15], latent_frames=49, part="tune").shape
        torch.Size([2, 3, 49, 24, 24])

        Raises:
            FreelocError: if there are fewer.
        """
        if max(clips) >= self.most_clips:
            raise FreelocError(f"expected at most {self.most_clips} clips of {self.name}, found {max(clips) + 1}")
        return self._true_clips(clips, latent_frames, part)

    def latents(self, clips: Sequence[int], latent_frames: int, part: Part = "test") -> Tensor:
        """`true_clips` as latents, the transformer's input without noise.

        >>> model_named("tiny-film").latents([3], latent_frames=13).shape
        torch.Size([1, 13, 3, 24, 24])
        """
        return self._to_latents(self.true_clips(clips, latent_frames, part))

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the weights and of what the true clips are made from."""
        return digest(*self.made_from)

    @abstractmethod
    def load(self) -> Any:
        """A new pipeline with the trained weights."""

    @abstractmethod
    def noise(self, seeds: Sequence[int], latent_frames: int) -> Tensor:
        """Initial noise of one clip per seed, with the axes of latents."""

    @abstractmethod
    def prompts(self, clips: Sequence[int]) -> list[str]:
        """The prompt of each clip; empty for a model without text."""

    @abstractmethod
    def sample(
        self,
        prompts: list[str],
        initial: Tensor,
        steps: int,
        guidance: float = 1.0,
        after_step: AfterStep | None = None,
    ) -> Tensor:
        """Videos sampled from prompts and noise, by the pipeline."""

    @abstractmethod
    def predict(self, noisy: Tensor, timestep: float, prompts: list[str]) -> Tensor:
        """One call of the transformer, without guidance."""

    @abstractmethod
    def _true_clips(self, clips: Sequence[int], latent_frames: int, part: Part) -> Tensor: ...

    @abstractmethod
    def _to_latents(self, video: Tensor) -> Tensor: ...


class TinyWan(TinyModel):
    """The tiny Wan and its synthetic hills: true clips of every prompt, as many as wanted."""

    name = "tiny-wan"
    trained_frames = model.TRAINED_FRAMES
    axes = "c f h w"
    steps, guidance = 8, 3.0
    most_clips = 1000
    measures = measures.MEASURES
    motion = "land as prompted"
    made_from = (model.WEIGHTS, synthetic)

    FIRST: ClassVar[dict[Part, int]] = {"test": 10_000, "tune": 20_000}
    """Seed of the first clip. Choices of layers were made on other seeds (`freeloc.tiny.probes`)."""

    def load(self) -> Any:
        """See `TinyModel`."""
        return model.load_pipeline()

    def noise(self, seeds: Sequence[int], latent_frames: int) -> Tensor:
        """See `TinyModel`."""
        return model.noise(seeds, latent_frames)

    def prompts(self, clips: Sequence[int]) -> list[str]:
        """One prompt per clip; after sixty clips they repeat."""
        every = synthetic.PROMPTS
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(self.FIRST["test"])).tolist()
        return [every[order[clip % len(every)]] for clip in clips]

    def sample(
        self,
        prompts: list[str],
        initial: Tensor,
        steps: int,
        guidance: float = 1.0,
        after_step: AfterStep | None = None,
    ) -> Tensor:
        """See `TinyModel`."""
        return model.sample(self.pipeline, prompts, initial, steps, guidance, after_step=after_step)

    @torch.no_grad()
    def predict(self, noisy: Tensor, timestep: float, prompts: list[str]) -> Tensor:
        """See `TinyModel`."""
        times = torch.full((len(noisy),), timestep)
        found: Tensor = self.transformer(noisy, times, synthetic.prompt_embeds(prompts), return_dict=False)[0]
        return found

    def _true_clips(self, clips: Sequence[int], latent_frames: int, part: Part) -> Tensor:
        found = [
            synthetic.clips([prompt], latent_frames, torch.Generator().manual_seed(self.FIRST[part] + clip))
            for clip, prompt in zip(clips, self.prompts(clips), strict=True)
        ]
        return torch.cat(found)

    def _to_latents(self, video: Tensor) -> Tensor:
        return synthetic.to_latents(video)


class TinyFilm(TinyModel):
    """The tiny CogVideoX and clips of a film, from shots that it was not trained on."""

    name = "tiny-film"
    trained_frames = film.TRAINED_FRAMES
    axes = "f c h w"
    steps, guidance = 12, 1.0
    most_clips = 16
    measures: ClassVar[dict[str, Measure]] = {
        name: measures.without_prompt(measure) for name, measure in MEASURES.items()
    }
    motion = "dynamic degree"
    made_from = (film.WEIGHTS, footage, footage.CLIPS)

    def load(self) -> Any:
        """See `TinyModel`."""
        return film.load_pipeline()

    def noise(self, seeds: Sequence[int], latent_frames: int) -> Tensor:
        """See `TinyModel`."""
        return film.noise(seeds, latent_frames)

    def prompts(self, clips: Sequence[int]) -> list[str]:
        """No text."""
        return [""] * len(clips)

    def sample(
        self,
        prompts: list[str],
        initial: Tensor,
        steps: int,
        guidance: float = 1.0,
        after_step: AfterStep | None = None,
    ) -> Tensor:
        """See `TinyModel`. There is no text, so nothing is guided."""
        return film.sample(self.pipeline, initial, steps, after_step)

    @torch.no_grad()
    def predict(self, noisy: Tensor, timestep: float, prompts: list[str]) -> Tensor:
        """See `TinyModel`."""
        found: Tensor = self.transformer(
            noisy,
            film.no_text(len(noisy)),
            torch.full((len(noisy),), round(timestep)),
            image_rotary_emb=film.rotary_tables(noisy.shape[1]),
            return_dict=False,
        )[0]
        return found

    def _true_clips(self, clips: Sequence[int], latent_frames: int, part: Part) -> Tensor:
        return film.to_video(footage.held_out(part, latent_frames)[list(clips)])

    def _to_latents(self, video: Tensor) -> Tensor:
        return film.to_latents(video)


MODELS: dict[str, TinyModel] = {model.name: model for model in (TinyWan(), TinyFilm())}
"""The models by name."""


def model_named(name: str) -> TinyModel:
    """The model of this name.

    >>> model_named("tiny-film").trained_frames
    13

    Raises:
        FreelocError: if there is none.
    """
    if name not in MODELS:
        raise FreelocError(f"expected one of the models {', '.join(MODELS)}, found '{name}'")
    return MODELS[name]


@functools.cache
def digest(*parts: ModuleType | Path) -> str:
    """Digest of the source files of modules, and of other files."""
    paths = [part if isinstance(part, Path) else Path(str(part.__file__)) for part in parts]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]
