"""Where the processor's time goes in the tests, as tables by kind and by file.

make test PYTEST_ADDOPTS=--junitxml=suite.xml; python -m bench.releases.suite_time suite.xml

Prints the tables; docs/results/counted.md has them.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from xml.etree import ElementTree

# The first that a test's name matches.
KINDS = {
    "torch.compile": r"compiles_with_fullgraph|test_compiled_models|test_ops\.test_(an_op|a_benchmark)",
    "compiling for GPUs": r"test_aot",
    "default model": r"test_default_model|sampling_default|test_shipped|decoding_runs_on|first_token|readme_example|default_models?_",
    "other processes": r"test_imports|test_layout|test_gpu\.",
    "interpreted kernels": r"kernels\.(\w+\.)?test_\w+_(kernel|op)|test_bounds|test_bytes|test_cuda_graphs|with_kernels",
    "references": r"tests\.kernels",
    "decoding tiny models": r"tests\.specdec|tests\.integration",
    "else": r"",
}


def main(path: str) -> None:
    by_kind: Counter[str] = Counter()
    by_file: Counter[str] = Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        seconds = sum(
            float(p.attrib["value"])
            for p in case.iter("property")
            if p.attrib["name"] == "processor_seconds"
        )
        name = f"{case.attrib['classname']}.{case.attrib['name']}"
        by_kind[next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))] += (
            seconds
        )
        by_file[case.attrib["classname"]] += seconds
    for title, seconds_by in (("kind", by_kind), ("file", by_file)):
        print(f"\n| {title} | seconds | share |\n| --- | ---: | ---: |")
        for name, seconds in seconds_by.most_common(20):
            print(f"| {name} | {seconds:.0f} | {seconds / by_kind.total():.0%} |")
    print(f"\n{by_kind.total():.0f} seconds in tests")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("junit", help="what pytest wrote with --junitxml")
    main(parser.parse_args().junit)
