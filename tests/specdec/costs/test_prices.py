import pytest

from specdec.costs.line import CostLine
from specdec.costs.prices import LEAST_NODES, MOST_NODES, price

CPU, FLAT = CostLine(17.5, 4.0, 0.55), CostLine(1.0, 8.0, 0.002)


def test_prices_equal_hand_computed_values():
    found = price(CostLine(20.0, 1.0, 1.0), 2.0, 1)
    assert found.per_ms == pytest.approx(0.1)
    assert found.nodes == round((2.25 * 20 / 2.0) ** (2 / 3)) == 8
    assert found.node == pytest.approx(0.1)  # a millisecond per node
    # 8 nodes of 4 rows are 31 ms beyond the knee, those of the plain pass 3.
    found = price(CostLine(17.0, 1.0, 1.0), 2.0, 4)
    assert found.per_ms == pytest.approx(0.4)
    assert found.nodes == round((2.25 * 20 / (2.0 * 4)) ** (2 / 3)) == 3
    assert found.node == pytest.approx(0.1 / 4)


def test_steep_costs_give_fewer_nodes_than_flat_costs():
    assert [price(CPU, 2.1, rows).nodes for rows in (1, 4, 8)] == [11, 4, 3]
    assert price(FLAT, 2.1, 1).nodes == MOST_NODES
    assert (price(CPU, 2.1, 1).width, price(FLAT, 2.1, 1).width) == (4, 8)


@pytest.mark.parametrize("line", [CPU, FLAT], ids=["cpu", "flat"])
def test_more_rows_have_fewer_nodes_each(line):
    nodes = [price(line, 2.1, rows).nodes for rows in range(1, 65)]
    assert nodes == sorted(nodes, reverse=True)
    assert nodes[-1] >= LEAST_NODES


def test_expensive_nodes_are_fewer_and_need_more_probability():
    found = [price(CostLine(17.5, 1.0, slope), 2.1, 1) for slope in (0.1, 0.2, 0.4, 0.8, 1.6)]
    assert [one.nodes for one in found] == sorted((one.nodes for one in found), reverse=True)
    assert [one.node for one in found] == sorted(one.node for one in found)


def test_faster_method_raises_both_prices():
    slow, fast = price(CPU, 1.2, 1), price(CPU, 2.4, 1)
    assert fast.per_ms == pytest.approx(2 * slow.per_ms)
    assert fast.node > slow.node
    assert fast.nodes < slow.nodes


def test_nodes_before_the_knee_are_free():
    line = CostLine(10.0, 32.0, 5.0)
    assert price(line, 2.0, 1).nodes == 32
    assert price(line, 2.0, 4).nodes == 8
    assert price(line, 2.0, 1).node == 0


def test_free_nodes_have_price_zero_and_the_maximum_number():
    found = price(CostLine(10.0, 1.0, 0.0), 2.0, 8)
    assert (found.nodes, found.node) == (MOST_NODES, 0.0)


def test_result_does_not_depend_on_the_unit_of_time():
    seconds = CostLine(CPU.level / 1000, CPU.knee, CPU.slope / 1000)
    here, there = price(CPU, 2.1, 4), price(seconds, 2.1, 4)
    assert there.node == pytest.approx(here.node)
    assert there.per_ms == pytest.approx(1000 * here.per_ms)
    assert there[2:] == here[2:]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_zero_rate_is_rejected(rate):
    with pytest.raises(ValueError, match="rate: expected a number above 0, got"):
        price(CPU, rate, 1)


def test_zero_rows_are_rejected():
    with pytest.raises(ValueError, match="rows: expected at least 1, got 0"):
        price(CPU, 2.0, 0)
