"""The command for a machine with a GPU, as far as it goes without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # bench is not installed; last, so that an installed pyops stays first

from bench import gpu  # noqa: E402
from bench.__main__ import main  # noqa: E402


def test_gpu_keeps_what_each_stage_leaves(monkeypatch, tmp_path):
    """A stage that fails and one that hangs cost only themselves."""
    scripts = {
        "build": "print('built')",
        "test": "raise SystemExit(3)",
        "sanitize": "import time; time.sleep(60)",
        "bench": "print('benched')",
    }

    def steps(stage, out, only, goals):
        return [gpu.Step(f"{stage}.log", [sys.executable, "-c", scripts[stage]])]

    monkeypatch.setattr(gpu, "steps", steps)
    monkeypatch.setattr(gpu, "sees_gpu", lambda: True)
    monkeypatch.setattr(gpu, "SHARE", {"build": 0.5, "test": 0.5, "sanitize": 0.3, "bench": 1.0})
    assert main(["gpu", "--out", str(tmp_path), "--minutes", "0.1"]) == 1
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [s["status"] for s in stages.values()] == ["passed", "failed", "timeout", "passed"]
    assert stages["sanitize"]["seconds"] < 30
    assert (tmp_path / "bench.log").read_text().endswith("benched\n")
    assert main(["gpu", "--out", str(tmp_path), "--stage", "build"]) == 0
    assert list(json.loads((tmp_path / "summary.json").read_text())["stages"]) == list(gpu.STAGES)


def test_gpu_commands_follow_the_options(monkeypatch, tmp_path):
    kernels, triton, others, large = gpu.steps("test", tmp_path, ["lut3d", "cotf"])
    for step in (kernels, triton, others, large):
        expression = step.command[step.command.index("-k") + 1]
        assert step.command[step.command.index("--device") + 1] == "cuda"
        assert expression.endswith(" and (lut3d or cotf)")
    assert "--slow" in large.command and "--numprocesses" not in large.command
    assert "tests/ops" in kernels.command and "tests/test_triton.py" in triton.command
    assert others.command[others.command.index("-k") + 1].startswith("(not (test_forward or")
    (bench,) = gpu.steps("bench", tmp_path, ["lut3d", "cotf"])
    assert bench.command[-3:] == ["--op", "lut3d", "cotf"] and str(tmp_path) in bench.command
    (bench,) = gpu.steps("bench", tmp_path, None, goals=True)
    assert bench.command[-1] == "--goals" and gpu.LEFT in bench.command
    monkeypatch.delattr(gpu, "run_stage")  # nothing may start
    assert main(["gpu", "--out", str(tmp_path), "--stage", "fly"]) == 2
    assert main(["gpu", "--out", str(tmp_path), "--only", "lut4d"]) == 2
    assert not list(tmp_path.iterdir())


def collecting(command):
    """The same command, in one process, to list its tests."""
    command = [*command, "--collect-only"]
    for option in ("--numprocesses", "--dist", "--timeout", "--timeout-method"):
        if option in command:
            del command[command.index(option) : command.index(option) + 2]
    return command


def test_gpu_tests_of_every_operator_are_found_by_its_name(tmp_path):
    """Those of the native library and those of Triton, streams and CUDA graphs among them."""
    stems = [p.stem for p in sorted((ROOT / "pyops" / "triton").glob("[!_]*.py"))]
    listed = {}
    for step in list(gpu.steps("test", tmp_path, None))[:2]:
        done = subprocess.run(collecting(step.command), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        listed[step.log] = done.stdout.splitlines()
    for stem in stems:
        for lines in listed.values():
            assert any(stem in line and "test_forward" in line for line in lines), stem
            assert any(stem in line and "test_other_stream" in line for line in lines), stem
    assert not any("float64" in line for line in listed["kernels.log"] if "test_forward" in line)
    assert any("test_cuda_graph[lut3d" in line for line in listed["triton.log"])
    assert not any("test_cuda_graph" in line and "knn-graph" in line for line in listed["kernels.log"])


def test_gpu_tells_a_command_how_long_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "GRACE_S", 15.0)
    show = gpu.Step("a.log", [sys.executable, "-c", "import sys; print('has', sys.argv[1])", gpu.LEFT])
    gpu.run_step(show, tmp_path, 90.0, {})
    assert (tmp_path / "a.log").read_text().endswith("has 1.00\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_one_says_so_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.delattr(gpu, "run_step")  # nothing may start
    assert main(["gpu", "--out", str(tmp_path), "--stage", "test,bench"]) == 1
    assert capsys.readouterr().out.count("torch sees no CUDA device") == 2
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [stage["status"] for stage in stages.values()] == ["failed", "failed"]


def test_gpu_builds_for_the_card_that_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ask_gpu", lambda **keys: dict.fromkeys(keys, "9.0"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(gpu, "built", lambda: False)
    build, info = gpu.steps("build", tmp_path, None)
    assert build.environment == {"TORCH_CUDA_ARCH_LIST": "9.0"} and info.command[-1] == gpu.INFO
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    build, _ = gpu.steps("build", tmp_path, None)
    assert build.environment == {}
    monkeypatch.setattr(gpu, "built", lambda: True)
    build, _ = gpu.steps("build", tmp_path, None)
    assert build.environment == {"PYOPS_BUILD": "0"}


def test_gpu_keeps_libraries_that_are_newer_than_their_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    for path in ("setup.py", "csrc/lut3d/lut3d.cu", "pyops/_C.abi3.so", "pyops/_C_cuda.abi3.so"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (1000, 2000 if path.endswith(".so") else 1000))
    assert gpu.built()
    os.utime(tmp_path / "csrc/lut3d/lut3d.cu", (3000, 3000))
    assert not gpu.built()
    os.utime(tmp_path / "csrc/lut3d/lut3d.cu", (1000, 1000))
    (tmp_path / "pyops/_C_cuda.abi3.so").unlink()
    assert not gpu.built()


def test_gpu_sanitizes_tests_that_exist(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    steps = list(gpu.steps("sanitize", tmp_path, ["lut3d"]))
    assert [step.log for step in steps] == ["memcheck.log", "racecheck.log"]
    command = steps[0].command
    assert command[:3] == ["compute-sanitizer", "--tool", "memcheck"]
    assert command[command.index("-k") + 1] == f"({gpu.SANITIZED}) and (lut3d)"
    pytest_command = command[command.index(sys.executable) :]
    collect = collecting(pytest_command)
    listed = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "test_lut3d.py" in listed and "test_layouts" in listed and "permuted" in listed
    assert "test_forward" not in listed and "stepped" not in listed


def test_gpu_keeps_every_log_of_a_stage_and_what_a_command_says_when_its_time_is_over(monkeypatch, tmp_path):
    interrupted = """
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("3 passed, 1 failed", flush=True)
    time.sleep(60)
"""
    scripts = ["print('first')", "raise SystemExit(5)", interrupted]
    commands = [gpu.Step("a.log", [sys.executable, "-c", script], nothing=5) for script in scripts]
    monkeypatch.setattr(gpu, "GRACE_S", 1.0)
    for _ in range(2):  # a later call replaces the log
        stage = gpu.run_stage(commands, tmp_path, 6.0, {})
        assert [step["status"] for step in stage["steps"]] == ["passed", "skipped", "timeout"]
        assert stage["status"] == "timeout" and stage["seconds"] < 20
        text = (tmp_path / "a.log").read_text()
        assert text.count("first\n") == 1 and text.endswith("3 passed, 1 failed\n")
    assert gpu.run_stage(commands[1:2], tmp_path, 6.0, {})["status"] == "skipped"
