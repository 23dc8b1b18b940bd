"""What the report of a patch says."""

import pytest
from conftest import make_profile

import freeloc
from freeloc.report import LayerReport, TransformerReport


def test_the_report_proves_that_calls_were_corrected(small_wan, run):
    with freeloc.patch(small_wan, make_profile()) as patch:
        assert "has not run yet" in str(patch.report())
        run(small_wan, 16)
        run(small_wan, 16)
        run(small_wan, 4)
    report = patch.report()
    first, second, _, last = report.layers
    assert (first.path, first.method, first.calls) == ("blocks.0.attn1", "vrpr", {16: 2})
    assert (first.largest_before, first.largest_after, first.attended) == (15, 3, 1)
    plan = freeloc.frame_plan(make_profile(), layer=1, frames=16)
    assert second.attended == pytest.approx(plan.token_mask(15).double().mean().item())
    assert last.untouched == {
        "16 latent frames, which the profile leaves alone": 2,
        "4 latent frames, which the profile leaves alone": 1,
    }
    text = str(report)
    assert "6 attention calls corrected, 6 left as they are (profile: small, default)" in text
    assert "15 -> 3" in text
    assert "4 latent frames, for which the plan changes nothing" in text


def test_the_report_says_the_share_of_pairs_over_all_calls(small_wan, run):
    with freeloc.patch(small_wan, make_profile()) as patch:
        for frames in (16, 9, 9):
            run(small_wan, frames)
    shares = {frames: freeloc.frame_plan(make_profile(), layer=1, frames=frames).density(15) for frames in (9, 16)}
    assert shares[9] > shares[16]
    assert patch.report().layers[1].attended == pytest.approx((2 * shares[9] + shares[16]) / 3)


def test_a_cache_under_heads_of_one_process_may_answer_where_their_plan_changes_nothing():
    """The heads of other processes are corrected, so the layer is due, but nothing is corrected here."""
    report = LayerReport(0, "blocks.0.attn1", "vrpr", share="heads 0 to 3 of 8")
    assert not report.has_computed(9)
    report.note_untouched(9)
    assert report.has_computed(9)
    assert not report.has_computed(16)
    report.share = ""
    assert not report.has_computed(9)


def test_skipped_calls_are_counted_among_the_forward_passes_of_their_length():
    layer = LayerReport(0, "blocks.0.attn1", "vrpr")
    layer.skipped[9, "a cache"] += 1
    report = TransformerReport([layer])
    report.due.update({9: 2, 13: 5})
    assert "skipped by a cache: layer 0 (blocks.0.attn1), in 1 of 2 forward passes at 9 latent frames" in report.lines()
