"""Calibrations of methods and unions."""

import json

import pytest

from checkpoint_parts import redrafter, tiny_target
from specdec.checkpoints import save_drafter
from specdec.drafters import load_drafter
from specdec.drafters.methods import METHODS
from specdec.drafters.parts.calibration import CALIBRATION, Calibration, calibrations, together
from specdec.evaluate.calibrate import Scores
from specdec.observer import VerifiedTree


def test_every_method_that_drafts_is_calibrated():
    assert calibrations().keys() == METHODS.keys() - {"plain"}
    assert all(known.rate >= 1 and 0 < known.share <= 1.5 for known in calibrations().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.9}, "rate: expected at least 1, got 0.9"),
        ({"share": 0.0}, "share: expected above 0, got 0.0"),
        ({"step_gain": float("nan")}, "step_gain: expected above 0, got nan"),
    ],
)
def test_out_of_range_calibrations_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        Calibration(**{"rate": 1.5, "share": 0.5} | change)


def test_calibration_of_a_union_adds_up_its_parts_or_is_none():
    parts = [Calibration(1.5, 0.5), Calibration(1.25, 0.9)]
    assert together(parts).rate == 1.75
    assert together([*parts, None]) is None


def test_checkpoint_calibration_overrides_the_methods(tmp_path):
    target = tiny_target()
    save_drafter(tmp_path, redrafter(target))
    assert load_drafter(tmp_path, target).calibration == calibrations()["redrafter"]
    (tmp_path / CALIBRATION).write_text(json.dumps({"rate": 1.9, "share": 0.7, "step_gain": 0.3}))
    assert load_drafter(tmp_path, target).calibration == Calibration(1.9, 0.7, 0.3)
    (tmp_path / CALIBRATION).write_text(json.dumps({"rate": 0.5, "share": 0.7}))
    with pytest.raises(ValueError, match=r"calibration\.json: expected a calibration, got rate: "):
        load_drafter(tmp_path, target)


def tree(parents, scores, path):
    """A tree by probabilities."""
    import math

    logs = [math.log(score) for score in scores]
    return VerifiedTree(0, [0] * len(parents), parents, logs, [0] * len(parents), [], path)


def test_claimed_and_accepted_probabilities_equal_hand_computed_values():
    scores = Scores(chain=False)
    #     root, two children of which one is right, one child of each
    scores.add(tree([-1, 0, 0, 1, 2], [1, 0.5, 0.2, 0.25, 0.1], [0, 1, 3]))
    assert scores.claimed == pytest.approx(0.2 + 0.25 + 0.1)
    assert scores.right == 1  # of those between the bounds: the node of 0.25
    assert (scores.held, scores.gained) == (pytest.approx(0.7), 1)
    scores.add(tree([-1, 0, 0, 1, 2], [1, 0.5, 0.2, 0.25, 0.1], [0, 2]))
    assert (scores.held, scores.gained) == (pytest.approx(1.4), 1)
    assert scores.right == 2


def test_chains_use_their_last_tokens_own_probability():
    scores = Scores(chain=True)
    scores.add(tree([-1, 0, 1, 2], [1, 0.8, 0.4, 0.1], [0, 1, 2]))
    assert scores.claimed == pytest.approx(1.3) and scores.right == 2
    assert scores.held == pytest.approx(0.8 + 0.5)
    assert scores.gained == 1
