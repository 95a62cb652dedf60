"""The command line: what it prints, and an exit status that tells right from wrong."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import pytest
import torch

import pyops
from pyops import cli, demo, testing


@pytest.mark.parametrize("argv", ([], ["--help"]))
def test_help_names_every_command(argv, capsys):
    if argv:
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(argv)
    else:
        assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in ("info", "correct", "stereo", "demo", "bench"))


def test_unknown_command(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["nonsense"])
    assert "nonsense" in capsys.readouterr().err


def test_info(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    info = pyops.build_info()
    for word in (
        pyops.__version__,
        torch.__version__,
        info["cpu_library"],
        info["cuda_library"] or info["cuda_problem"],
        torch.backends.cpu.get_cpu_capability(),
        f"{torch.get_num_threads()} threads",
    ):
        assert word in printed, word
    lines = printed.splitlines()
    functions = {name for name in pyops.__all__ if inspect.isfunction(getattr(pyops, name))}
    functions -= {"build_info", "keep_memory"}
    checked = {line.split()[1] for line in lines if line.startswith("  ok ")}
    assert checked == functions


def test_info_says_why_there_are_no_cuda_kernels(monkeypatch, capsys):
    monkeypatch.setattr(pyops._native, "cuda_loaded", False)
    monkeypatch.setattr(pyops._native, "cuda_problem", "the dog ate them")
    cli.main(["info"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CUDA kernels")]
    assert line.endswith("none: the dog ate them")


def test_wrong_operator_is_exit_status_1(monkeypatch, capsys):
    wrong = testing.Check("lut3d", False, math.nan, "cpu")
    monkeypatch.setattr(testing, "self_check", lambda: [testing.Check("fuse_luts", True, 0.0, "cpu"), wrong])
    assert cli.main(["info"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED lut3d" in printed and "ok     fuse_luts" in printed and "1 of 2 failed" in printed


def test_demo_gets_its_options(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run", lambda args: seen.append(args) or 7)
    assert cli.main(["demo", "--quick", "--size", "64x32", "--frames", "3"]) == 7
    assert (seen[0].quick, seen[0].size, seen[0].frames) == (True, (64, 32), 3)


def test_bench_gets_its_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["bench", "compare", "--help"])
    assert "--fail-above" in capsys.readouterr().out


def test_bench_outside_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    assert cli.main(["bench", "run"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("pyops bench needs the source") and message.count("\n") == 1


def test_python_m_pyops(tmp_path):
    command = [sys.executable, "-m", "pyops", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"pyops {pyops.__version__}\n"), result.stderr
