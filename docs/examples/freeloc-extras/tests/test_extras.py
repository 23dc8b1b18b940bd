from freeloc_extras.attended_distance import AttendedDistance
from freeloc_extras.near_and_anchors import METHOD, NearAndAnchors
from freeloc_extras.tiles import TILES

import freeloc
from freeloc.testing import check_backend


def test_the_backend_is_right_or_says_that_it_cannot():
    refused = check_backend(TILES)
    assert {reason.partition(": ")[2] for reason in refused} == {"supports no mask", "supports no decay of logits"}


def test_the_plan_is_a_window_and_anchors_in_the_trained_range():
    wan = freeloc.load_profile("wan2.1")
    plan = METHOD.plan(wan, 0, 41, NearAndAnchors(near_frames=4, every=10))
    assert plan.visibility[25].nonzero().flatten().tolist() == [0, 10, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 40]
    assert plan.largest_position == 20
    assert METHOD.plan(wan, 0, 21, NearAndAnchors(near_frames=4)).is_identity


def test_the_depth_needs_no_arguments():
    assert AttendedDistance().name == "attended-distance"
