"""Reading untrusted video files (GIF with Pillow, all others with PyAV) within bounds, and writing them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.files import opened, replacing
from freeloc.untrusted import printable

LARGEST_FILE = 20_000_000_000
"""Largest size of a video file, in bytes. It is decoded as a stream, and is never in memory as a whole."""

MOST_FRAMES = 5000
"""Largest number of frames of a video."""

LARGEST_SIDE = 8192
"""Largest height and width of a frame, in pixels."""

LARGEST_RATIO = 4
"""Largest ratio of the sides. The measures keep up to 64 pixels along the shorter one, so it bounds their memory."""

MOST_PIXELS = 500_000_000
"""Largest number of pixels of all frames together: 1,252 frames of 832 x 480. As float32 they take 6 GB."""

FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,mxf,nut,ivf,yuv4mpegpipe"
"""Containers that are read, by FFmpeg's names. Others, such as playlists, can name more files and addresses to open."""


def read_video(path: str | Path, most_pixels: int = MOST_PIXELS) -> Tensor:
    """All frames of a file, (frames, height, width, 3) float32 in 0..1. See `read_frames`."""
    frames = list(read_frames(path, most_pixels))
    video = torch.empty(len(frames), *frames[0].shape)
    for index, frame in enumerate(frames):
        torch.div(frame, 255, out=video[index])
    return video


def read_frames(path: str | Path, most_pixels: int = MOST_PIXELS) -> Iterator[Tensor]:
    """The frames of a file, one at a time, (height, width, 3) uint8.

    The sizes that the file declares are checked first, and then each frame, whatever it declares.

    Args:
        path: a GIF, or an MP4, MOV, MKV, WebM, AVI, MPEG, OGG, FLV, WMV, MXF, NUT, IVF or Y4M file.
        most_pixels: largest number of pixels of all frames together.

    Raises:
        FreelocError: if there is no such file, it holds no video or a larger one than `MOST_FRAMES`, `LARGEST_SIDE`,
            `LARGEST_RATIO` and `most_pixels` allow, or the package that reads it is not installed.
    """
    path = Path(path)
    where = printable(str(path))
    if not path.exists():
        raise FreelocError(f"expected a video file, found nothing at {where}")
    limits = _Limits(where, most_pixels)
    try:
        with opened(path, LARGEST_FILE) as file:
            read = _gif_frames if path.suffix.lower() == ".gif" else _av_frames
            yield from read(file, limits)
    except ImportError as error:
        raise FreelocError(f'reading videos requires more packages ({error}): pip install "freeloc[video]"') from error
    except (_TooLargeError, MemoryError):
        raise
    except Exception as error:  # a decoder may fail in any way on a damaged file
        cause = printable(str(error) or type(error).__name__)
        raise FreelocError(f"cannot read {where} as a video: {cause}") from error
    if not limits.frames:
        raise FreelocError(f"expected a video, found no frame in {where}")


class _TooLargeError(FreelocError):
    """A video is larger than is allowed."""


@dataclass
class _Limits:
    """What a video may take. Each frame is counted here before it is kept.

    Args:
        where: the file.
        pixels: largest number of pixels of all frames together.
        frames: number of frames so far.
        size: width and height of the first one.
    """

    where: str
    pixels: int
    frames: int = 0
    size: tuple[int, int] | None = None

    def count(self, width: int, height: int) -> None:
        """Count one more frame.

        Raises:
            FreelocError: if it is too many, or too large.
            ValueError: if it has another size than the first one, or is very narrow.
        """
        self.frames += 1
        self.require(self.frames, width, height)
        if max(width, height) > LARGEST_RATIO * min(width, height):
            raise ValueError(
                f"expected frames of at most {LARGEST_RATIO} times as many pixels along one side as along the other, "
                f"found {width} x {height}"
            )
        if self.size not in (None, (width, height)):
            raise ValueError("its frames have different sizes")
        self.size = width, height

    def require(self, frames: int, width: int, height: int) -> None:
        """Require that a video of so many frames of this size is allowed.

        Raises:
            FreelocError: if it is not.
        """
        if frames > MOST_FRAMES or max(width, height) > LARGEST_SIDE or frames * width * height > self.pixels:
            raise self.refusal(f"{frames} frames or more of {width} x {height}")

    def refusal(self, found: str) -> FreelocError:
        """The error about a video that is too large."""
        return _TooLargeError(
            f"{self.where} is too large: expected at most {MOST_FRAMES} frames, {LARGEST_SIDE} pixels along a side and "
            f"{self.pixels} pixels in all frames together, found {found}: cut the video, or make it smaller"
        )


def _gif_frames(file: BinaryIO, limits: _Limits) -> Iterator[Tensor]:
    from PIL import Image, ImageSequence, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=("GIF",)) as image:  # for other formats Pillow may start other programs
                for frame in ImageSequence.Iterator(image):
                    limits.count(*frame.size)
                    rgb = frame.convert("RGB")
                    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
                    yield pixels.view(rgb.height, rgb.width, 3)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise limits.refusal(f"a frame of more ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError("expected a GIF, as its name says") from error


def _av_frames(file: BinaryIO, limits: _Limits) -> Iterator[Tensor]:
    import av

    # The file is given without its name: FFmpeg takes some names for addresses, or for patterns of many files.
    options = {"format_whitelist": FORMATS, "max_pixels": str(LARGEST_SIDE**2)}
    try:
        with av.open(file, options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                return
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("FFmpeg does not know its codec")
            limits.require(max(1, stream.frames), stream.width, stream.height)
            stream.codec_context.options = {"max_pixels": options["max_pixels"]}
            for frame in container.decode(stream):
                limits.count(frame.width, frame.height)
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, OSError) as error:  # the only base class of PyAV's errors, and those of the file
        raise ValueError(f"{error.strerror}: expected an MP4, MOV, MKV, WebM, AVI or MPEG file, or a GIF") from error


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
    except (OSError, ValueError, av.FFmpegError) as error:
        raise FreelocError(f"cannot write the video {printable(str(path))}: {error}") from error
