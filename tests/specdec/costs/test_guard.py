"""When drafting rests: by sums of tokens and table costs, never by a clock."""

import pytest

from specdec.costs.guard import AGAIN, ALLOWED, MOST, Guard


def rounds(guard, gains, plain, rows=1, drafted=True):
    """Count rounds that each take the time of `plain` tokens per row; return which of them rested."""
    rested = []
    for gained in gains:
        rested.append(guard.resting)
        guard.count(gained * rows, plain * rows, rows, drafted=drafted and not guard.resting)
    return rested


def test_drafting_that_pays_never_pauses():
    guard = Guard()
    assert not any(rounds(guard, [2, 1, 3] * 50, 1.5))
    assert guard.rests == [] and guard.lost <= MOST


def test_cheap_drafter_without_drafts_does_not_pause():
    assert not any(rounds(Guard(), [1] * 500, 1.015, drafted=False))


def test_earlier_gains_do_not_offset_later_losses():
    guard = Guard()
    rounds(guard, [4] * 100, 1.5)
    assert guard.lost == 0
    assert any(rounds(guard, [1] * 20, 1.3))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("plain", [1.1, 1.4, 2.0])
def test_drafting_that_never_pays_costs_a_bounded_share(plain, rows):
    guard, tokens, lost = Guard(), 2000, 0.0
    for rested in rounds(guard, [1] * tokens, plain, rows):
        lost += 0 if rested else plain - 1
    # What starts it, what tries it again, and the round that goes beyond.
    assert lost <= MOST + ALLOWED * tokens + plain
    assert lost < 0.03 * tokens


def test_trials_during_pauses_are_rare_and_pauses_record_their_reason():
    guard = Guard()
    rested = rounds(guard, [1] * 300, 1.5)
    first = rested.index(True)
    assert first == 4  # 3 x 0.5 is within bounds, 4 x 0.5 is not
    assert guard.rests[0] == (4, 4, 6.0)
    again = rested.index(False, first)
    assert again - first == pytest.approx((4 * 0.5 - AGAIN) / ALLOWED, abs=1.5)
    assert len(guard.rests) > 1


def test_drafting_resumes_when_the_drafter_improves():
    guard = Guard()
    rounds(guard, [1] * 30, 1.5)
    assert guard.resting
    good = rounds(guard, [1] * 80 + [3] * 60, 1.0)
    assert not good[-1]
