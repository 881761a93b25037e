"""The tables of counted launches: alike beam widths in one row, waits with their stage."""

import pytest


@pytest.fixture
def report():
    from bench.report import launches

    return launches


def stages(aten, reads=0):
    nothing = {"kernels": {}, "aten": 0, "reads": {}, "uploads": {}}
    draft = {"kernels": {"_a_kernel": 2}, "aten": aten, "reads": {"equal": reads}, "uploads": {}}
    return {"draft": draft, "verify": nothing | {"aten": 7}, "emit": nothing | {"reads": {"x": 1}}}


def test_equal_launches_share_one_row(report):
    runs = [
        ("plain", None, stages(0)),
        ("re", 1, stages(5)),
        ("re", 2, stages(5)),
        ("re", 4, stages(6, 3)),
    ]
    text = report.launches_tables(
        {
            "gpu": "sm_90", "layers": 2, "batch": 3, "versions": {"torch": "1"},
            "runs": [{"method": m, "beam_width": w, "stages": s} for m, w, s in runs],
            "one_layer_more": {"verify": {"kernels": {"_b_kernel": 1}, "aten": 17}},
        }
    )  # fmt: skip
    assert "| plain | - | 2 + 0 | 0 + 7 | 0 + 0 | 2 + 7 | 1 (emit) | 0 |" in text
    assert "| re | 1 to 2 | 2 + 5 | 0 + 7 | 0 + 0 | 2 + 12 | 1 (emit) | 0 |" in text
    assert "| re | 4 | 2 + 6 | 0 + 7 | 0 + 0 | 2 + 13 | 3 (draft), 1 (emit) | 0 |" in text
    assert "| `_a_kernel` | 2 | 2 | 2 |" in text
    assert "adds 1 + 10 to verify" in text
