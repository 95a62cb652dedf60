"""The benchmark suite end to end, on an image of a few pixels."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # bench is not installed; last, so that an installed pyops stays first

from bench import case as cases  # noqa: E402
from bench import memory, run, timing  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.ops import lut3d as op  # noqa: E402
from bench.peers.lut3d import grid_sample_lut3d  # noqa: E402

TINY = op.Lut3d(shape=(6, 8), size=5, quick=True, headline=True)
CPU = torch.device("cpu")


def exact(case, x):
    return case.task(grid_sample_lut3d, x)


def wrong(case, x):
    return lambda: x["image"] * 0.5


def broken(case, x):
    raise RuntimeError("no such mode")


@pytest.fixture
def tiny(monkeypatch):
    """One small case, with a peer of every fate."""
    peers = cases.Peers()
    peers.peer("exact")(exact)
    peers.peer("wrong")(wrong)
    peers.peer("broken")(broken)
    peers.peer("absent", needs="a_package_nobody_has")(exact)
    peers.peer("elsewhere", devices=["cuda"])(exact)
    monkeypatch.setattr(op, "CASES", [TINY])
    monkeypatch.setattr(run, "WARM_UP_S", 0.01)
    monkeypatch.setattr("bench.peers.lut3d.PEERS", peers)


@pytest.fixture
def result(tiny, tmp_path):
    assert main(["run", "--op", "lut3d", "--quick", "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-*/lut3d.json")
    return path


def contestants(path):
    return json.loads(path.read_text())["cases"][TINY.name]["contestants"]


def test_run_checks_before_it_compares(result):
    found = contestants(result)
    assert list(found) == ["pyops", "exact", "wrong", "broken", "absent"]
    assert found["pyops"]["match"] and found["pyops"]["median_ms"] > 0
    assert found["exact"]["match"] and found["exact"]["speedup"] > 0
    assert not found["wrong"]["match"] and found["wrong"]["max_error"] > 0.1
    assert found["wrong"]["median_ms"] > 0 and found["wrong"]["speedup"] is None
    assert found["broken"]["error"] == "RuntimeError: no such mode"
    assert found["absent"]["skipped"] == "a_package_nobody_has is not installed"


def test_run_fails_when_ours_is_wrong(tiny, monkeypatch, tmp_path):
    ours = {"pyops": lambda x: cases.Contestant(lambda: x["image"] * 0.5)}
    monkeypatch.setattr(op.Lut3d, "ours", lambda self, device: ours)
    assert main(["run", "--op", "lut3d", "--quick", "--seconds", "0.01", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("cpu-*/lut3d.json")
    assert contestants(path)["exact"]["speedup"] is None


def test_unknown_operator_is_named(capsys):
    assert main(["run", "--op", "lut4d"]) == 2
    assert re.search(r"expected one of .*lut3d, .*got lut4d", capsys.readouterr().err)


def test_run_begins_with_the_headlines_and_keeps_what_it_has(tiny, monkeypatch, tmp_path):
    """A case that cannot be checked costs only itself; what is written is in the declared order."""
    shapes = [(6, 8), (6, 9), (6, 10), (6, 11)]
    declared = [op.Lut3d(shape=s, size=5, quick=True, headline=s == (6, 10)) for s in shapes]
    elsewhere = replace(TINY, shape=(6, 12), devices=("cuda",))
    monkeypatch.setattr(op, "CASES", [*declared, elsewhere])
    seen = []

    def reference(self, x):
        seen.append(self.shape)
        if self.shape == (6, 8):
            raise MemoryError("too large")
        return [x["image"].double()]

    monkeypatch.setattr(op.Lut3d, "reference", reference)
    assert main(["run", "--op", "lut3d", "--quick", "--seconds", "0.01", "--out", str(tmp_path)]) == 1
    assert seen == [(6, 10), (6, 8), (6, 9), (6, 11)]
    (path,) = tmp_path.glob("cpu-*/*")
    assert list(json.loads(path.read_text())["cases"]) == [case.name for case in declared[1:]]


def test_latency_is_timed_until_the_result_is_there(tiny, monkeypatch, tmp_path):
    case = replace(TINY, latency=True)
    told, waits = [], []

    def host_sampler(*arguments, **options):
        told.append(options)
        return timing.host_sampler(*arguments, **options)

    monkeypatch.setattr(op, "CASES", [case])
    monkeypatch.setattr(run, "host_sampler", host_sampler)
    assert main(["run", "--op", "lut3d", "--quick", "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-*/lut3d.json")
    found = json.loads(path.read_text())["cases"][case.name]
    assert case.title.endswith("one call at a time") and found["copy_ms"] is None
    entry = found["contestants"]["exact"]
    assert entry["method"] == "host clock" and entry["gb_s"] is None and "peak_bytes" not in entry
    assert told and all(options["wait"] for options in told)
    monkeypatch.setattr(timing, "_synchronize", waits.append)
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE_S", 1e-9)  # one call a sample
    timing.host_sampler(cases.Contestant(lambda: None), CPU, 1.0)()
    assert len(waits) == 1
    timing.host_sampler(cases.Contestant(lambda: None), CPU, 1.0, wait=True)()
    assert len(waits) == 3


def test_slow_starters_run_on_a_cpu_in_headlines_only():
    peers = cases.Peers()
    peers.peer("compiled", cpu_headlines_only=True)(exact)
    cuda = torch.device("cuda")
    assert [len(list(peers.of(TINY, device))) for device in (CPU, cuda)] == [1, 1]
    other = replace(TINY, headline=False)
    assert [len(list(peers.of(other, device))) for device in (CPU, cuda)] == [0, 1]


def test_a_model_is_run_and_reported_like_an_operator(tiny, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    peers = cases.Peers()
    peers.peer("exact", stock=True)(exact)
    monkeypatch.setattr("bench.models.cotf.CASES", [TINY])
    monkeypatch.setattr("bench.peers.cotf.PEERS", peers)
    monkeypatch.setattr(run, "peak_bytes", lambda call, device: 5_000_000)
    assert main(["run", "--op", "cotf", "lut3d", "--quick", "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("cpu-*/cotf.json")
    assert json.loads(path.read_text())["kind"] == "model"
    (tmp_path / "README.md").write_text("<!-- bench:begin -->\n<!-- bench:end -->\n")
    assert main(["report", "--out", str(tmp_path), "--readme", str(tmp_path / "README.md")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.index('id="lut3d"') < page.index('id="cotf"')
    model = page[page.index('id="cotf"') :]
    for name in ("pyops", "exact"):
        row = re.search(rf'<th scope="row">{name}</th>.*?</tr>', model).group()
        assert "<td>5 MB</td>" in row


@pytest.mark.skipif(sys.platform != "linux", reason="the process' high-water mark is Linux'")
def test_peak_memory_is_what_a_call_needs():
    found = memory.peak_bytes(lambda: torch.ones(64 << 18).sum(), CPU)
    if found is None:
        pytest.skip("this system does not tell")
    assert 63 < found / 2**20 < 80  # the kernel counts pages in batches


@pytest.mark.parametrize(
    "changes",
    [
        {"backward": True},
        {"backward": True, "vertices": True, "batch": 2, "lut_per_image": True},
        {"dtype": torch.uint8},
        {"dtype": torch.bfloat16, "channels_last": True},
    ],
)
def test_cases_match_the_reference_strip_by_strip(monkeypatch, changes):
    monkeypatch.setattr(op, "STRIP_PIXELS", 16)  # several strips even here
    case = replace(TINY, **changes)
    x = case.inputs(CPU)
    ours = case.ours(CPU)["pyops"](x)
    assert run.check(ours.view(ours.call()), case.reference(x), case.tolerances())["match"]
    peer = cases.as_tensors(case.task(grid_sample_lut3d, x)())
    assert run.check(peer, case.reference(x), case.tolerances())["match"]


@pytest.mark.parametrize("interpolation", ["trilinear", "tetrahedral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.uint16])
def test_installed_peers_do_the_same_work(interpolation, dtype):
    """OpenColorIO and Pillow have axis orders of their own: a swapped axis would still be timed."""
    from bench.peers.lut3d import PEERS

    case = replace(TINY, shape=(48, 64), interpolation=interpolation, dtype=dtype)
    x = case.inputs(CPU)
    for peer in PEERS.of(case, CPU):
        if peer.missing(quick=True) is None:
            rival = peer.contestant(case, x)
            assert run.check(rival.view(rival.call()), case.reference(x), case.tolerances())["match"], (
                peer.name
            )


def test_case_names_are_unique():
    for operator in cases.load_ops():
        names = [case.name for case in operator.cases]
        assert len(set(names)) == len(names)


def test_interleave_takes_turns():
    calls = []
    samplers = {n: lambda n=n: calls.append(n) or float(len(calls)) for n in "abc"}
    stats = timing.interleave(samplers, seconds=0, min_rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert stats["a"].min == 1 and stats["a"].median == 6 and stats["a"].samples == 3


def test_interleave_has_patience(monkeypatch):
    """Rounds that take long are fewer, yet three."""
    monkeypatch.setattr(timing, "PATIENCE_S", 0.05)
    slow = timing.interleave({"a": lambda: time.sleep(0.04) or 1.0}, seconds=0.01)
    assert slow["a"].samples == 3
    assert timing.interleave({"a": lambda: time.sleep(0.001) or 1.0}, seconds=0.001)["a"].samples == 5


def test_check_counts_flips_and_refuses_nan():
    true = [torch.zeros(100)]
    out = torch.zeros(100)
    out[:2] = 1
    assert run.check([out], true, [cases.Tolerance(0.1, flips=0.02)])["match"]
    assert not run.check([out], true, [cases.Tolerance(0.1, flips=0.01)])["match"]
    assert not run.check([out], true, [cases.Tolerance(0.1, flips=0.02, ceiling=0.5)])["match"]
    assert not run.check([out * float("nan")], true, [cases.Tolerance(9.0)])["match"]
    assert not run.check([out[:50]], true, [cases.Tolerance(9.0)])["match"]


def worsen(path, key, factor, who):
    data = json.loads(path.read_text())
    data["cases"][TINY.name]["contestants"][who][key] *= factor
    new = path.with_name("new.json")
    new.write_text(json.dumps(data))
    return ["compare", str(path), str(new), "--fail-above", "5"]


def test_compare_finds_regressions(result, capsys):
    assert main(worsen(result, "median_ms", 1.04, "pyops")) == 0
    assert main(worsen(result, "median_ms", 0.5, "pyops")) == 0
    assert main(worsen(result, "median_ms", 1.06, "pyops")) == 1
    assert main(worsen(result, "speedup", 0.96, "exact")) == 0
    assert main(worsen(result, "speedup", 0.9, "exact")) == 1
    assert "ratio to exact" in capsys.readouterr().out
    assert main(worsen(result, "match", 0, "pyops")) == 1


def test_compare_refuses_another_device(result, capsys):
    arguments = worsen(result, "median_ms", 1, "pyops")
    new = Path(arguments[2])
    new.write_text(json.dumps(json.loads(new.read_text()) | {"slug": "another"}))
    assert main(arguments) == 2
    assert "one slug" in capsys.readouterr().err


def test_report_rewrites_the_marked_block(result, tmp_path):
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    for _ in range(2):  # the second time finds its own block
        assert main(["report", "--out", str(tmp_path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench:begin -->\n| op | workload |")
    assert text.endswith("<!-- bench:end -->\nafter\n") and "old" not in text
    assert f"| `lut3d` | {TINY.title} |" in text and text.count("| not measured |") == 1
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "not measured" in page and "RuntimeError: no such mode" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert (tmp_path / "lut3d.svg").read_text().startswith("<svg")


def test_report_says_what_is_missing(result, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text("no block\n")
    assert main(["report", "--out", str(tmp_path), "--readme", str(readme)]) == 2
    assert "has no block <!-- bench:begin -->" in capsys.readouterr().err
    assert readme.read_text() == "no block\n"
    assert main(["report", "--out", str(tmp_path / "empty"), "--readme", str(readme)]) == 2
    assert "no results in" in capsys.readouterr().err
