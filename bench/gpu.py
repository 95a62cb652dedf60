"""Everything worth knowing from a machine with a GPU, by one command, into one folder.

Each stage leaves its log and `summary.json` before the next begins, so a stage that fails or runs out
of time costs only itself. The folder is flat enough to be a folder of results: `report --out` reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .environment import ROOT

STAGES = ("build", "test", "sanitize", "bench")
# Of the time left when the stage begins: the later ones are not starved by an early one that hangs.
SHARE = {"build": 0.5, "test": 0.5, "sanitize": 0.4, "bench": 1.0}
FAILED_SANITIZER = 86  # an exit status of its own, apart from pytest's


class Step(NamedTuple):
    log: str
    command: list[str]
    environment: Mapping[str, str] = {}


def gpu(
    out: Path,
    stages: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    minutes: float = 60.0,
    wheels: Path | None = None,
) -> int:
    """Exit status 1 when a stage failed. Needs no pyops, and torch only in the stages."""
    unknown = sorted(set(stages or ()) - set(STAGES))
    if unknown:
        raise ValueError(f"--stage: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    environment = peers_environment(wheels, out)
    path = out / "summary.json"
    # Stages may come in several calls, where one command may not run for long.
    done: dict[str, Any] = json.loads(path.read_text())["stages"] if path.is_file() else {}
    failed = False
    for stage in [s for s in STAGES if s in (stages or STAGES)]:
        limit = SHARE[stage] * max(0.0, end - time.monotonic())
        done[stage] = run_stage(list(steps(stage, out, only)), out, limit, environment)
        path.write_text(json.dumps({"stages": done}, indent=1) + "\n")
        print(f"{stage}: {done[stage]['status']}", flush=True)
        failed |= done[stage]["status"] not in ("passed", "skipped")
    return int(failed)


def steps(stage: str, out: Path, only: Sequence[str] | None) -> Iterator[Step]:
    """The commands of a stage. A sanitizer that is not installed gives none."""
    python = [sys.executable, "-m"]
    tests = [*python, "pytest", "tests", "-q", "--device", "cuda"]
    chosen = ["-k", " or ".join(only)] if only else []
    if stage == "build":
        command = [*python, "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
        yield Step("build.log", command)
    elif stage == "test":
        yield Step("test.log", [*tests, *chosen])
    elif stage == "sanitize":
        for tool in ("memcheck", "racecheck") if shutil.which("compute-sanitizer") else ():
            checker = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FAILED_SANITIZER)]
            command = [*checker, "--target-processes", "all", *tests, "-m", "sanitize", *chosen]
            # One allocation per tensor: inside torch's pool an overrun lands in memory that is valid.
            yield Step(f"{tool}.log", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    elif stage == "bench":
        options = ["--device", "cuda", "--seconds", "4", "--out", str(out)]
        yield Step("bench.log", [*python, "bench", "run", *options, *(["--op", *only] if only else [])])


def run_stage(
    commands: Sequence[Step], out: Path, limit_s: float, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run every step, also after one that failed; the worst status is the stage's."""
    start = time.monotonic()
    if not commands:
        return {"status": "skipped", "reason": "compute-sanitizer is not installed", "seconds": 0.0}
    results = []
    for done, step in enumerate(commands):
        left = max(1.0, limit_s - (time.monotonic() - start))
        status, code = run_step(step, out, left / (len(commands) - done), environment)
        last = tail((out / step.log).read_text(errors="replace"))
        results.append({"status": status, "exit": code, "log": step.log, "tail": last})
    worst = next((r["status"] for r in results if r["status"] != "passed"), "passed")
    return {"status": worst, "seconds": round(time.monotonic() - start, 1), "steps": results}


def run_step(step: Step, out: Path, limit_s: float, environment: Mapping[str, str]) -> tuple[str, int | None]:
    with open(out / step.log, "w") as log:
        log.write("$ " + " ".join(step.command) + "\n")
        log.flush()
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **step.environment},
            start_new_session=True,  # so that a timeout ends what the command started, too
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "timeout", None
    return ("passed" if code == 0 else "failed"), code


def tail(text: str, lines: int = 5) -> list[str]:
    return [line[:300] for line in text.splitlines() if line.strip()][-lines:]


def peers_environment(wheels: Path | None, out: Path) -> dict[str, str]:
    """Install the carried wheels beside the interpreter's own packages, and say where they are."""
    environment = {"PYTHONUNBUFFERED": "1"}
    found = sorted(map(str, wheels.glob("*.whl"))) if wheels else []
    if not found:
        return environment
    target = tempfile.mkdtemp(prefix="pyops-peers-")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", target, *found]
    with open(out / "wheels.log", "w") as log:
        if subprocess.run(pip, stdout=log, stderr=subprocess.STDOUT).returncode:
            print(f"bench: the wheels of {wheels} did not install (see wheels.log)", file=sys.stderr)
    paths = [target, os.environ.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
