"""Measures of a video that is read frame by frame."""

import pytest
import torch

from freeloc.errors import FreelocError
from freeloc.metrics import MEASURES, pairs_with_texture
from freeloc.metrics.motion import NOISE, displacements, motion_field, working_size
from freeloc.metrics.streaming import measure
from freeloc.tiny.synthetic import clips


def video_of(size):
    """Bytes of a moving synthetic clip, enlarged to a size (height, width)."""
    clip = clips(["red ring fast"], 13, torch.Generator().manual_seed(0))[0].movedim(0, 1)
    large = torch.nn.functional.interpolate(clip, size=size, mode="bilinear").clamp(0, 1)
    return (255 * large.movedim(1, -1)).round().byte()


@pytest.mark.parametrize("size", [(56, 70), (64, 64), (97, 130), (300, 220)])
def test_it_equals_the_measures_of_the_whole_video(size):
    video = video_of(size)
    found = measure(iter(video))
    whole = video.float() / 255
    assert list(found.values) == list(MEASURES)
    for name, function in MEASURES.items():
        assert found.values[name] == pytest.approx(function(whole), rel=1e-4, abs=1e-6), name
    assert found.textured == pairs_with_texture(whole)
    assert torch.allclose(found.small, working_size(whole), atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "at least 3 frames, found 2"),
        (torch.zeros(3, 2, 8, 3, dtype=torch.uint8), "at least 3 x 3 pixels"),
        (torch.zeros(3, 8, 8, 3), r"uint8, found \(8, 8, 3\) torch.float32"),
    ],
)
def test_what_is_no_video_is_refused(frames, message):
    with pytest.raises(FreelocError, match=message):
        measure(frames)


@pytest.mark.parametrize("block", [1, 5])
def test_motion_is_that_of_the_definition(block):
    """Pixel by pixel and displacement by displacement, as `motion_field` describes it."""
    video = torch.rand(2, 6, 7, 3, generator=torch.Generator().manual_seed(0))
    found = motion_field(video, radius=2, block=block)[0]
    wide = torch.nn.functional.pad(video[1].movedim(-1, 0), (2, 2, 2, 2), mode="replicate").movedim(0, -1)
    for row in range(6):
        for column in range(7):
            rows, columns = (slice(max(at - block // 2, 0), at + block // 2 + 1) for at in (row, column))
            least, best = torch.tensor(torch.inf), None
            for x, y in displacements(2).tolist():
                moved = wide[2 + y : 8 + y, 2 + x : 9 + x]
                cost = (video[0] - moved)[rows, columns].abs().mean()
                if cost < least - NOISE:
                    least, best = cost, [x, y]
            assert found[row, column].tolist() == best
