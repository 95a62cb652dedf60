"""The command for a machine with a GPU, as far as it goes without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # bench is not installed; last, so that an installed pyops stays first

from bench import gpu  # noqa: E402
from bench.__main__ import main  # noqa: E402
from bench.environment import benchmarks  # noqa: E402


def test_gpu_keeps_what_each_stage_leaves(monkeypatch, tmp_path):
    """A stage that fails and one that hangs cost only themselves."""
    scripts = {
        "build": "print('built')",
        "test": "raise SystemExit(3)",
        "sanitize": "import time; time.sleep(60)",
        "bench": "print('benched')",
    }

    def steps(stage, out, only):
        return [gpu.Step(f"{stage}.log", [sys.executable, "-c", scripts[stage]])]

    monkeypatch.setattr(gpu, "steps", steps)
    monkeypatch.setattr(gpu, "SHARE", {"build": 0.5, "test": 0.5, "sanitize": 0.3, "bench": 1.0})
    assert main(["gpu", "--out", str(tmp_path), "--minutes", "0.1"]) == 1
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [s["status"] for s in stages.values()] == ["passed", "failed", "timeout", "passed"]
    assert stages["sanitize"]["seconds"] < 30
    assert (tmp_path / "bench.log").read_text().endswith("benched\n")
    assert main(["gpu", "--out", str(tmp_path), "--stage", "build"]) == 0
    assert list(json.loads((tmp_path / "summary.json").read_text())["stages"]) == list(gpu.STAGES)


def test_gpu_commands_follow_the_options(monkeypatch, tmp_path):
    (test,) = gpu.steps("test", tmp_path, ["lut3d", "cotf"])
    assert test.command[1:4] == ["-m", "pytest", "tests/ops"]
    assert test.command[-4:] == ["--device", "cuda", "-k", "lut3d or cotf"]
    lut3d, cotf = gpu.steps("bench", tmp_path, ["lut3d", "cotf"])
    assert lut3d.command[-2:] == ["--op", "lut3d"] and str(tmp_path) in lut3d.command
    assert cotf.command[-2:] == ["--op", "cotf"] and cotf.log == lut3d.log
    assert [step.command[-1] for step in gpu.steps("bench", tmp_path, None)] == list(benchmarks())
    monkeypatch.delattr(gpu, "run_stage")  # nothing may start
    assert main(["gpu", "--out", str(tmp_path), "--stage", "fly"]) == 2
    assert main(["gpu", "--out", str(tmp_path), "--only", "lut4d"]) == 2
    assert not list(tmp_path.iterdir())


def test_gpu_builds_for_the_card_that_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ask_gpu", lambda **keys: dict.fromkeys(keys, "9.0"))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    (build,) = gpu.steps("build", tmp_path, None)
    assert build.environment == {"TORCH_CUDA_ARCH_LIST": "9.0"}
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    (build,) = gpu.steps("build", tmp_path, None)
    assert build.environment == {}


def test_gpu_sanitizes_tests_that_exist(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    steps = list(gpu.steps("sanitize", tmp_path, ["lut3d"]))
    assert [step.log for step in steps] == ["memcheck.log", "racecheck.log"]
    command = steps[0].command
    assert command[:3] == ["compute-sanitizer", "--tool", "memcheck"]
    assert command[-1] == "(test_layouts or test_forward) and (lut3d)"
    pytest_command = command[command.index(sys.executable) :]
    collect = [*pytest_command, "--collect-only", "--device", "cpu"]
    listed = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "test_lut3d.py" in listed and "test_layouts" in listed and "test_forward" in listed
    assert "test_gradcheck" not in listed


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
