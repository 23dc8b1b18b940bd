"""Reading video files (GIF with Pillow, all others with PyAV), and writing them."""

from pathlib import Path

import torch
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.files import replacing


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
        raise FreelocError(f'reading videos requires more packages ({error}): pip install "freeloc[video]"') from error
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
    except av.FFmpegError as error:  # the only base class of PyAV's errors
        raise ValueError(error) from error
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("its frames have different sizes")
    return frames


def write_video(path: str | Path, video: Tensor, frames_per_second: int = 16) -> None:
    """Write an MP4 file, H.264, with almost no loss.

    Args:
        path: path of the file.
        video: (frames, height, width, 3) in 0..1. H.264 requires even sizes, so an odd last row or column is left out.
        frames_per_second: frame rate of the file.

    Raises:
        FreelocError: if it cannot be written, or the package that writes it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise FreelocError(f'writing videos requires more packages ({error}): pip install "freeloc[video]"') from error
    if video.ndim != 4 or video.shape[-1] != 3 or min(video.shape[:3]) < 1 or min(video.shape[1:3]) < 2:
        raise FreelocError(f"expected a video (frames, height, width, 3), found {tuple(video.shape)}")
    even = video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2]
    pixels = (even.clamp(0, 1) * 255).round().byte().cpu().numpy()
    try:
        with replacing(Path(path)) as part, av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "10"})
            stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    except (OSError, av.FFmpegError) as error:
        raise FreelocError(f"cannot write the video {path}: {error}") from error
