"""Clips of a real film: Big Buck Bunny, (c) 2008 Blender Foundation, CC BY 3.0, in frames of 36 x 64 pixels.

The film comes with a package on PyPI. To train, or to make the clips again (the package av is required):

    pip download moviepy==2.1.2 --no-deps --no-binary :all:
    tar xf moviepy-2.1.2.tar.gz && unzip moviepy-2.1.2/docs/_static/medias/getting_started/*/moviepy_10_minutes.zip
    python -m freeloc.tiny.film.footage moviepy_10_minutes/resources/bbb.mp4

Clips for tuning and testing are from shots that were not used for training, and come with freeloc.
"""

import argparse
import itertools
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZE = 24
"""Height and width of a clip in pixels: a crop of a frame."""

CLIPS = Path(__file__).parent / "clips.safetensors"

FRAMES = Path("runs/film/frames.safetensors")
"""The frames of the film, which are not part of the package."""

LONGEST = 97
"""Frames of each clip in `CLIPS`: eight trained lengths, where each continues from the last frame of the previous."""

CREDITS = 11757
"""The frame from which on the film shows credits."""

Part = Literal["tune", "test"]


def read_film(path: Path) -> Tensor:
    """The frames of the film, (frames, 36, 64, 3) uint8."""
    import av

    with av.open(str(path)) as film:
        small = [
            torch.from_numpy(frame.reformat(width=64, height=36, format="rgb24", interpolation="AREA").to_ndarray())
            for frame in film.decode(video=0)
        ]
    return torch.stack(small)


def shots(frames: Tensor) -> list[range]:
    """The shots of a film: frames between cuts, where far more pixels change than in the frames around.

    >>> film = torch.zeros(40, 36, 64, 3, dtype=torch.uint8)
    >>> film[25:] = 200
    >>> shots(film)
    [range(0, 25), range(25, 40)]

    Args:
        frames: (frames, height, width, 3) uint8.
    """
    changes = (frames[1:].short() - frames[:-1].short()).abs().float().mean(dim=(1, 2, 3))
    around = torch.nn.functional.pad(changes[None], (6, 6), mode="reflect")[0].unfold(0, 13, 1).median(dim=1).values
    cuts = [0, *((changes > 12) & (changes > 3 * around)).nonzero().flatten().add(1).tolist(), len(frames)]
    return [range(start, stop) for start, stop in itertools.pairwise(cuts)]


def split(found: list[range]) -> dict[str, list[range]]:
    """Shots for training, tuning and testing: of those as long as `LONGEST`, one in four each for the last two."""
    story = [shot for shot in found if shot.stop <= CREDITS]
    long = [shot for shot in story if len(shot) >= LONGEST]
    chosen = {"tune": long[1::4], "test": long[3::4]}
    kept = [shot for shot in story if shot not in chosen["tune"] and shot not in chosen["test"]]
    return {"train": kept, **chosen}


def crops(frames: Tensor, places: list[range], length: int, count: int, generator: torch.Generator) -> Tensor:
    """Random clips (count, length, 3, SIZE, SIZE) in -1..1 of the shots that are long enough; half are mirrored.

    Long shots are drawn as often as they are long.
    """
    fitting = [shot for shot in places if len(shot) >= length]
    weights = torch.tensor([len(shot) - length + 1.0 for shot in fitting])
    chosen = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    made = [_crop(frames, fitting[index], length, generator) for index in chosen]
    return torch.stack(made).movedim(-1, 2).float() / 127.5 - 1


def _crop(frames: Tensor, shot: range, length: int, generator: torch.Generator) -> Tensor:
    """One random clip (length, SIZE, SIZE, 3) uint8."""
    height, width = frames.shape[1:3]
    most = (len(shot) - length, height - SIZE, width - SIZE)
    first, top, left = (int(torch.randint(limit + 1, (), generator=generator)) for limit in most)
    first += shot.start
    clip = frames[first : first + length, top : top + SIZE, left : left + SIZE]
    return clip.flip(2) if torch.rand((), generator=generator) < 0.5 else clip


def held_out(part: Part, latent_frames: int = LONGEST) -> Tensor:
    """Clips of shots that were not used for training, as latents (clips, latent_frames, 3, SIZE, SIZE) in -1..1.

    >>> held_out("tune", latent_frames=49).shape
    torch.Size([16, 49, 3, 24, 24])

    Args:
        part: ``"tune"`` for choosing, ``"test"`` for reporting; no shot is in both.
        latent_frames: the first frames of each clip, at most `LONGEST`.
    """
    found: Tensor = load_file(CLIPS)[part][:, :latent_frames]
    return found.float() / 127.5 - 1


def _held_out_of(frames: Tensor, places: list[range], count: int) -> Tensor:
    """`count` clips, as many of each shot, (clips, LONGEST, 3, SIZE, SIZE) uint8."""
    generator = torch.Generator().manual_seed(0)
    each = [crops(frames, [places[index % len(places)]], LONGEST, 1, generator) for index in range(count)]
    return ((torch.cat(each) + 1) * 127.5).round().byte()


def main() -> None:
    """Read the film, and write `FRAMES` and `CLIPS`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("film", type=Path)
    frames = read_film(parser.parse_args().film)
    FRAMES.parent.mkdir(parents=True, exist_ok=True)
    save_file({"frames": frames}, FRAMES)
    of_part = split(shots(frames))
    save_file({part: _held_out_of(frames, of_part[part], 16) for part in ("tune", "test")}, CLIPS)


if __name__ == "__main__":
    main()
