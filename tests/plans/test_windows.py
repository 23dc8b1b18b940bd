"""Windows with first frames and anchors, and LVSA's pattern, in plain loops."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freeloc.plans.baselines import sliding_window
from freeloc.plans.frame_plan import DENSE
from freeloc.plans.windows import LvsaSettings, lvsa_interval, lvsa_plan, window_visibility


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9), st.none() | st.integers(1, 12), st.integers(0, 30))
@example(20, 5, 1, 6, 3)  # the offset of anchors shows in few of the others
def test_a_window_first_frames_and_anchors(frames, window, sinks, every, offset):
    found = window_visibility(frames, window, sinks, every, offset)
    plain = sliding_window(frames, window).visibility == DENSE
    for i in range(frames):
        for j in range(frames):
            anchor = every is not None and j % every == offset % every
            assert bool(found[i, j]) == (bool(plain[i, j]) or j < sinks or anchor)
    assert set(found.unique().tolist()) <= {0, DENSE}


def test_a_window_of_one_frame_is_the_frame_itself():
    assert torch.equal(window_visibility(5, 1), torch.eye(5, dtype=torch.uint8) * DENSE)


def attended(frames, trained, **given):
    plan = lvsa_plan(frames, trained, LvsaSettings(**given))
    return [set(row.nonzero().flatten().tolist()) for row in plan.visibility]


def test_key_frames_move_on_from_step_to_step_and_return():
    rows = {step: attended(24, 4, reach_frames=0, interval=5, step=step)[12] for step in range(6)}
    assert rows[0] == {0, 5, 10, 15, 20}
    assert rows[1] == {0, 1, 6, 11, 16, 21}
    assert rows[4] == {0, 4, 9, 14, 19}  # the fifth is frame 24, which is frame 0
    assert rows[5] == rows[0]


def test_the_window_grows_past_the_frames_that_are_attended_to_anyway():
    rows = attended(20, 4, reach_frames=2, first_frames=2, interval=4)
    everywhere = {0, 1, 4, 8, 12, 16}
    # 9 to 13 hold the key frame 12. The window grows to the left, where 8 is a key frame too, then to the right.
    assert rows[11] == everywhere | {9, 10, 11, 13, 14}
    assert rows[0] == everywhere | {2, 3, 5, 6, 7}
    assert rows[19] == everywhere | {14, 15, 17, 18, 19}


@pytest.mark.parametrize("frames", [81, 161])
def test_every_frame_attends_to_about_the_trained_number_of_frames(frames):
    for step in (0, 1, 5):
        counts = [len(row) for row in attended(frames, 21, step=step)]
        assert max(counts) - min(counts) == 0
        assert 21 <= counts[0] <= 23


@pytest.mark.parametrize(
    ("frames", "trained", "reach", "first", "interval"),
    [
        (81, 21, 3, 1, 6),  # 14 key frames beside a window of 7: 81 / 6 rounded up is 14
        (161, 21, 3, 1, 12),
        (41, 21, 3, 1, 3),
        (22, 21, 3, 1, 2),  # the closed form: (22 - 7) / (21 - 7) rounded up
        (64, 16, 3, 1, 7),
        (9, 4, 3, 1, 9),  # the window alone is more than the trained length
    ],
)
def test_the_interval_of_key_frames(frames, trained, reach, first, interval):
    assert lvsa_interval(frames, trained, reach, first) == interval


def test_it_changes_nothing_up_to_the_trained_length_and_keeps_true_positions_beyond():
    assert lvsa_plan(21, 21, LvsaSettings()).is_identity
    assert lvsa_plan(81, 21, LvsaSettings()).largest_position == 80
