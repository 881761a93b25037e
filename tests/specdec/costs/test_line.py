import math
import random

import pytest

from specdec.costs.line import CostLine

# A CPU with AVX512, SmolLM2-135M-Instruct: milliseconds of one pass each, as they came.
MEASURED = {
    "float32": {1: 30.2, 2: 33.2, 3: 28.2, 4: 27.1, 6: 28.8, 8: 33.4, 12: 37.5, 16: 41.3, 24: 55.9, 32: 66.8, 48: 105.5, 64: 117.0},
    "bfloat16": {1: 21.8, 2: 24.1, 3: 20.0, 4: 21.1, 6: 21.1, 8: 23.6, 12: 27.8, 16: 29.9, 24: 38.3, 32: 48.0, 48: 68.2, 64: 77.7},
}  # fmt: skip
SIZES = tuple(MEASURED["float32"])


def points_of(line, sizes=SIZES):
    return [(nodes, line.ms(nodes)) for nodes in sizes]


@pytest.mark.parametrize(
    "line",
    [
        CostLine(20.0, 1, 0.5),
        CostLine(20.0, 12, 1.5),
        CostLine(1.0, 16, 0.002),
        CostLine(7.0, 1, 0.0),
        CostLine(20.0, 24, 1.5),
    ],
    ids=str,
)
def test_exact_times_are_fitted_exactly(line):
    points = points_of(line)
    random.Random(1).shuffle(points)
    found = CostLine.fit(points)
    for nodes in range(1, 200):
        assert found.ms(nodes) == pytest.approx(line.ms(nodes))


@pytest.mark.parametrize("dtype", MEASURED)
def test_fit_of_measured_times_is_constant_up_to_six_nodes(dtype):
    points = list(MEASURED[dtype].items())
    line = CostLine.fit(points)
    assert 4 <= line.knee <= 8
    assert line.error(points) / len(points) < 0.06


def test_one_outlier_does_not_change_the_fit():
    line = CostLine(20.0, 4, 0.5)
    points = points_of(line)
    points[5] = (points[5][0], 10 * points[5][1])
    assert CostLine.fit(points).ms(40) == pytest.approx(line.ms(40))


@pytest.mark.parametrize("seed", range(20))
def test_fitted_time_never_decreases(seed):
    chance = random.Random(seed)
    points = [(nodes, chance.lognormvariate(3 - seed * nodes / 500, 0.4)) for nodes in SIZES]
    line = CostLine.fit(points)
    times = [line.ms(nodes) for nodes in range(1, 300)]
    assert min(times) > 0
    assert times == sorted(times)
    assert line.per_node(1, 300) >= 0


def test_fit_has_the_least_error_of_all_curves_with_a_knee_at_a_size():
    points = list(MEASURED["float32"].items())
    least = CostLine.fit(points).error(points)
    for knee in SIZES[:-1]:
        for level in range(20, 40):
            for slope in (0.0, 0.5, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0):
                assert CostLine(level, knee, slope).error(points) >= least


def test_slope_is_the_mean_between_two_sizes():
    line = CostLine(10.0, 4, 2.0)
    assert line.per_node(1, 4) == 0
    assert line.per_node(1, 7) == pytest.approx(1.0)
    assert line.per_node(8, 9) == pytest.approx(2.0)


def test_two_sizes_are_enough():
    assert CostLine.fit([(1, 10.0), (5, 18.0)]).ms(3) == pytest.approx(14.0)
    assert CostLine.fit([(1, 18.0), (5, 10.0)]).per_node(1, 5) == 0


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(4, 2.0), (4, 3.0)]], ids=len)
def test_fewer_than_two_sizes_are_rejected(points):
    with pytest.raises(ValueError, match="points: expected two or more numbers of nodes"):
        CostLine.fit(points)


@pytest.mark.parametrize("point", [(0, 1.0), (2, 0.0), (2, -1.0), (2, math.inf), (2, math.nan)])
def test_invalid_times_are_rejected(point):
    with pytest.raises(ValueError, match="points: expected nodes and ms above 0, got"):
        CostLine.fit([(1, 1.0), point])
