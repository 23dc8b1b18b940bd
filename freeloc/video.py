"""Reading videos from files: GIF by Pillow, everything else by PyAV."""

from pathlib import Path

import torch
from torch import Tensor

from freeloc.errors import FreelocError


def read_video(path: str | Path) -> Tensor:
    """All frames of a file, (frames, height, width, 3) float32 in 0..1.

    Raises:
        FreelocError: if there is no such file, it holds no video, or the package that reads it is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FreelocError(f"expected a video file, found nothing at {path}")
    try:
        frames = _read_gif(path) if path.suffix.lower() == ".gif" else _read_av(path)
    except ImportError as error:
        raise FreelocError(f'reading videos needs more packages ({error}): pip install "freeloc[video]"') from error
    except (OSError, ValueError) as error:
        raise FreelocError(f"cannot read {path} as a video: {error}") from error
    if not frames:
        raise FreelocError(f"expected a video, found no frame in {path}")
    return torch.stack(frames).float() / 255


def _read_gif(path: Path) -> list[Tensor]:
    from PIL import Image, ImageSequence

    frames = []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            rgb = frame.convert("RGB")
            frames.append(torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3))
    return frames


def _read_av(path: Path) -> list[Tensor]:
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return []
            frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    except av.FFmpegError as error:  # its kinds share no other base
        raise ValueError(error) from error
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("its frames change their size")
    return frames
