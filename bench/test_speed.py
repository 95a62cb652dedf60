"""The same cases under pytest-benchmark: `python -m pytest bench --benchmark-only`.

One contestant at a time, with pytest-benchmark's statistics, storage and histograms; `python -m bench run`
is the measurement that takes turns (see README.md beside this file). CPU, and the quick cases only.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from bench.case import load_ops
from bench.run import check

pytest.importorskip("pytest_benchmark")

CPU = torch.device("cpu")


def contestants(case, device, peers):
    installed = {p.name: p for p in peers.of(case, device) if p.missing(quick=True) is None}
    return case.ours(device) | {name: partial(p.contestant, case) for name, p in installed.items()}


RUNS = [
    pytest.param(case, build, id=f"{op.name}-{case.name}-{name}")
    for op in load_ops()
    for case in op.cases
    if case.quick
    for name, build in contestants(case, CPU, op.peers).items()
]


@pytest.mark.parametrize(("case", "build"), RUNS)
def test_speed(case, build, benchmark):
    inputs = case.inputs(CPU)
    with torch.inference_mode(not case.backward):
        rival = build(inputs)
        assert check(rival.view(rival.call()), case.reference(inputs), case.tolerances())["match"]
        benchmark.group = case.title
        if case.overhead:
            benchmark(rival.call)
        else:
            benchmark.pedantic(rival.call, setup=rival.before, rounds=10, warmup_rounds=2)
