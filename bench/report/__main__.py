"""Draw the pictures and write the tables of README.md and docs from data files.

    make bench-report

Reads bench/results and the training reports of the shipped drafters. Tables without a data file stay unchanged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

from bench import ROOT
from bench.report.architectures import architecture_tables
from bench.report.bytes import bytes_table, naive_table, operands_table, prefix_table
from bench.report.comparison import (
    categories_table,
    draw_speedups,
    efficiency_table,
    medians_table,
    methods_table,
    stages_table,
)
from bench.report.compat import compat_table
from bench.report.dedup import dedup_table, draw_dedup
from bench.report.free.methods import equal_nodes_table, free_categories, free_table
from bench.report.front.page import front_page
from bench.report.gpu.page import gpu_page
from bench.report.gpu.targets import bounds_table
from bench.report.launches import launches_tables
from bench.report.lean_layers import bound_table, passes_table, texts_table
from bench.report.ops import ops_page
from bench.report.overview.headlines import headlines_table
from bench.report.pages import DOCS, fill, machine_line
from bench.report.sampling import batches_table, coupled_table, equality_table, speed_table
from bench.report.second import second_model_page
from bench.report.self_text import value_table, writing_table
from bench.report.settings.lists import lists_table
from bench.report.settings.one_factor import factors_table
from bench.report.settings.replay import draw_settings, replay_tables
from bench.report.steps import kinds_table, steps_table
from bench.report.trained.one_budget import PICTURE as GAINS
from bench.report.trained.one_budget import budget_tables, causes_table, draw_gains
from bench.report.training import PICTURE, draw_training, sizes_table, training_table
from specdec.drafters.names import SHIPPED, SHIPPED_FOLDER
from specdec.train.run import REPORT

RESULTS = ROOT / "bench" / "results"
PICTURES = DOCS / "pictures"
DTYPES = ("float32", "bfloat16")


def main() -> None:
    matplotlib.use("Agg")
    front_page(RESULTS)
    report_comparison()
    report_training()
    report_self_text()
    report_dedup()
    report_lean_layers()
    report_training_free()
    report_architectures()
    report_second_model()
    report_one_budget()
    report_bytes()
    report_launches()
    report_compat()
    report_sampling()
    report_settings()
    report_devices()
    fill(DOCS / "results" / "index.md", {"headlines": headlines_table(RESULTS)})


def report_devices() -> None:
    fill(DOCS / "results" / "ops.md", {"ops": ops_page(RESULTS, PICTURES)})
    found = {"gpu-targets": bounds_table(), "gpu": gpu_page(RESULTS / "gpu")}
    fill(DOCS / "results" / "gpu.md", found)


def report_comparison() -> None:
    spec_bench = {dtype: load(RESULTS / f"spec_bench_cpu_{dtype}.json") for dtype in DTYPES}
    steps = {dtype: load(RESULTS / f"step_cpu_{dtype}.json") for dtype in DTYPES}
    exact = load(RESULTS / "spec_bench_cpu_bfloat16_exact.json")
    draw_speedups(spec_bench, PICTURES / "speedups.png")
    both = {**spec_bench, "bfloat16, exact": exact}
    fill(
        DOCS / "results" / "cpu.md",
        {
            "machine": machine_line(spec_bench["float32"]["machine"]),
            "methods": methods_table(both),
            "categories": "\n\n".join(categories_table(d, spec_bench[d]) for d in DTYPES),
            "qa": categories_table("bfloat16", load(RESULTS / "spec_bench_cpu_bfloat16_qa.json")),
            "medians": medians_table(spec_bench["bfloat16"]),
            "efficiency": efficiency_table(both),
            "steps": steps_table(steps),
            "kinds": kinds_table(steps),
            "stages": stages_table(spec_bench),
        },
    )


def report_lean_layers() -> None:
    result = load(RESULTS / "lean_layers.json")
    parts = {"lean-passes": passes_table, "lean-texts": texts_table, "lean-bound": bound_table}
    fill(DOCS / "how" / "decoder_layer.md", {mark: make(result) for mark, make in parts.items()})


def report_training_free() -> None:
    files = {dtype: RESULTS / f"training_free_cpu_{dtype}.json" for dtype in DTYPES}
    results = {dtype: load(path) for dtype, path in files.items() if path.exists()}
    page, nodes = DOCS / "results" / "training_free.md", RESULTS / "equal_nodes.json"
    if results:
        categories = [free_categories(dtype, result) for dtype, result in results.items()]
        tables = {"free": free_table(results), "free-categories": "\n\n".join(categories)}
        fill(page, tables)
    if nodes.exists():
        fill(page, {"equal-nodes": equal_nodes_table(load(nodes))})


def report_training() -> None:
    files = {name: SHIPPED_FOLDER / name / REPORT for name in SHIPPED}
    reports = {name: load(path) for name, path in files.items() if path.exists()}
    if not reports:
        return
    draw_training(reports, PICTURES / "training.png")
    tables = [PICTURE, sizes_table(reports), training_table(reports)]
    fill(DOCS / "use" / "training.md", {"training": "\n\n".join(tables)})


def report_self_text() -> None:
    files = {"self-text": "self_text.json", "text-value": "text_value.json"}
    writers = {"self-text": writing_table, "text-value": value_table}
    there = {name: RESULTS / file for name, file in files.items() if (RESULTS / file).exists()}
    fill(
        DOCS / "use" / "training.md",
        {name: writers[name](load(path)) for name, path in there.items()},
    )


def report_dedup() -> None:
    counted = RESULTS / "dedup.json"
    if not counted.exists():
        return
    result = load(counted)
    draw_dedup(result, PICTURES / "dedup.png")
    fill(DOCS / "drafters" / "redrafter.md", {"dedup": dedup_table(result)})


def report_second_model() -> None:
    compared = RESULTS / "second_model.json"
    if compared.exists():
        fill(DOCS / "use" / "training.md", {"second-model": second_model_page(load(compared))})


def report_one_budget() -> None:
    page, own = DOCS / "results" / "trained.md", {"attention": "the paper's adapter"}
    if (measured := RESULTS / "one_budget.json").exists():
        draw_gains(load(measured), PICTURES / "trained.png")
        fill(page, {"gains": GAINS})
    for mark, file, names in (
        ("one-budget", "one_budget", {}),
        ("variants", "kangaroo_variants", own),
    ):
        if (measured := RESULTS / f"{file}.json").exists():
            fill(page, {mark: budget_tables(load(measured), **names)})
    if (measured := RESULTS / "eagle3_causes.json").exists():
        fill(page, {"causes": causes_table(load(measured))})


def report_bytes() -> None:
    counted = RESULTS / "bytes.json"
    if not counted.exists():
        return
    result = load(counted)
    fill(
        DOCS / "results" / "counted.md",
        {
            "bytes": bytes_table(result),
            "prefix": prefix_table(result),
            "operands": operands_table(result),
            "naive": naive_table(result),
        },
    )


def report_launches() -> None:
    counted = RESULTS / "launches.json"
    if counted.exists():
        fill(DOCS / "results" / "counted.md", {"launches": launches_tables(load(counted))})


def report_compat() -> None:
    tried = RESULTS / "compat.json"
    if tried.exists():
        fill(DOCS / "results" / "counted.md", {"compat": compat_table(load(tried))})


def report_sampling() -> None:
    measured, compared = RESULTS / "sampling_cpu.json", RESULTS / "sampling_equality.json"
    if measured.exists():
        result = load(measured)
        speeds = {"sampled": speed_table(result), "batches": batches_table(result)}
        fill(DOCS / "results" / "cpu.md", speeds)
        fill(DOCS / "how" / "lossless.md", {"coupled": coupled_table(result)})
    if compared.exists():
        fill(DOCS / "how" / "lossless.md", {"equality": equality_table(load(compared))})


def report_settings() -> None:
    replayed = RESULTS / "replay.json"
    if replayed.exists():
        result = load(replayed)
        draw_settings(result, PICTURES / "settings.png")
        fill(DOCS / "how" / "settings.md", replay_tables(result))
    lists = [RESULTS / f"batch_{rows}_cpu_float32.json" for rows in (4, 8)]
    if all(path.exists() for path in lists):
        fill(DOCS / "how" / "settings.md", {"lists": lists_table([load(path) for path in lists])})
    factors = RESULTS / "one_factor.json"
    if factors.exists():
        fill(DOCS / "how" / "settings.md", {"one-factor": factors_table(load(factors))})


def report_architectures() -> None:
    tried = RESULTS / "architectures.json"
    if tried.exists():
        fill(DOCS / "use" / "models.md", architecture_tables(load(tried)))


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    ).parse_args()
    main()
