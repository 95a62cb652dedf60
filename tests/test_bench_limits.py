"""What the benchmarks say a GPU allows: computed from the workload, said in words, never shown as measured."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent))  # bench is not installed

from bench import case as cases
from bench import limits, page, run
from bench.__main__ import main
from bench.ops.lut3d import Lut3d
from bench.ops.minplus import MinPlus

H200 = limits.CHIPS["nvidia-h200"]


def test_rates_are_those_of_data_sheets():
    assert H200.flops("fma") == pytest.approx(67e12, rel=0.01)
    assert H200.flops("add, min") == pytest.approx(H200.flops("fma") / 2)


def test_every_case_has_floors_and_a_prediction():
    for op in cases.load_ops():
        for case in op.cases:
            if case.overhead or "cuda" not in case.devices:
                continue
            found = limits.limits(case, H200)
            assert case.bytes > 0 and case.flops >= 0, case.title
            assert 0 < found.floor < found.predicted < 10, case.title
            assert found.binds


def test_floors_follow_the_workload():
    case = MinPlus(paths=True, size=10000)
    found = limits.limits(case, H200)
    assert found.by_arithmetic == pytest.approx(2e12 / H200.flops("add, min"))
    assert found.by_bytes == pytest.approx(8e8 / H200.copied)
    assert found.predicted > found.by_arithmetic + 157 * 3 * H200.launch_s
    small = limits.limits(Lut3d(shape=(1080, 1920)), H200)
    assert limits.limits(Lut3d(), H200).by_arithmetic == pytest.approx(4 * small.by_arithmetic)


WANTED = {  # by operator or model: what there has to be a goal for
    "lut3d": ["110 us", "30 us", "4x forward", "80 % of a copy"],
    "sampling": ["10 us, one launch"],
    "cotf": ["0.5 ms", "2.5 ms"],
    "groupwise": ["70 % of write bandwidth"],
    "lookup": ["6 us", "6 us"],
    "corr1d": ["1.5x its GEMM"],
    "mocha": ["operators under 15 %"],
    "tpatches": ["0.4 ms"],
    "fps": ["0.3 ms"],
    "knn": ["25 us", "1.5 ms", "2x its GEMM"],
    "geodesic": ["25 ms"],
    "minplus": ["150 ms"],
    "isomap": ["120 ms", "20 ms"],
}


def test_goals_have_their_cases():
    found = {op.name: [c.goal for c in op.cases if c.goal] for op in cases.load_ops()}
    assert {name: goals for name, goals in found.items() if goals} == WANTED
    for op in cases.load_ops():
        assert all("cuda" in c.devices for c in op.cases if c.goal)


def test_limits_are_printed(capsys):
    assert main(["limits", "--op", "minplus", "tpatches", "--goals"]) == 0
    text = capsys.readouterr().out
    assert "Nothing below was measured" in text and "shortest distances, 10000 nodes" in text
    assert "goal: 0.4 ms" in text and "product" not in text
    assert main(["limits", "--device", "nvidia-g1"]) == 2


def test_report_shows_the_share_of_the_floor():
    case = Lut3d(goal="110 us")
    entry = limits.entry(case, "nvidia-h200")
    assert limits.entry(case, "cpu-anything") is None
    assert limits.entry(replace(case, overhead=True), "nvidia-h200") is None
    measured = {"limits": entry, "contestants": {"pyops": {"median_ms": 4 * entry["floor_ms"]}}}
    assert "25 %" in page.limit(measured) and "goal: 110 us" in page.limit(measured)
    assert "not measured" in page.limit({**measured, "contestants": {"pyops": {"error": "no GPU"}}})
    assert page.limit({"contestants": {}}) == ""


def test_a_part_of_the_work_is_no_rival():
    numbers = {"median_ms": 1.0, "match": True}
    contestants = {
        "pyops": {**numbers, "stock": False},
        "all": {**numbers, "speedup": 3.0, "stock": False, "part": False},
        "GEMM": {**numbers, "speedup": 0.8, "stock": False, "part": True},
    }
    assert page.shown_peers({"contestants": contestants}) == [("all", 3.0)]


def test_operators_run_apart(monkeypatch, tmp_path):
    """One that ends its process, and one that takes too long, cost only themselves."""

    def fake(names, device, *, until, out):
        (out / names[0]).write_text(json.dumps(until - time.monotonic()))
        if names[0] == "fps":
            os.kill(os.getpid(), signal.SIGKILL)
        if names[0] == "gather":
            time.sleep(60)
        return 0

    monkeypatch.setattr(run, "run", fake)
    monkeypatch.setattr(run, "GRACE_S", 0.5)
    start = time.monotonic()
    assert run.run_apart(["fps", "gather", "mds"], "cpu", minutes=0.05, out=tmp_path) == 1
    assert time.monotonic() - start < 30
    shares = [json.loads((tmp_path / name).read_text()) for name in ("fps", "gather", "mds")]
    assert shares[0] == pytest.approx(
        1.0, abs=0.3
    )  # a third of what there is; the next has what was left over
    assert shares[1] > 1.0
    assert run.run_apart(["mds"], "cpu", minutes=1, out=tmp_path) == 0


def test_a_run_ends_when_its_time_is_over(capsys, tmp_path):
    assert run.run(["lut3d"], "cpu", quick=True, until=time.monotonic() - 1, out=tmp_path) == 1
    assert "out of time" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/*"))
