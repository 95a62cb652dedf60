"""Everything worth knowing from a machine with a GPU, by one command, into one folder.

Each stage leaves its log and `summary.json` before the next begins, so a stage that fails or runs out
of time costs only itself, and stages may come in several calls. The most telling tests come first: the kernels of the
native library, then those of Triton, then all that PyTorch may do with the operators. Every operator is measured by a
process of its own, headlines first: one that crashes the GPU costs only itself, too. The folder is flat enough to be
a folder of results: `report --out` reads it.
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
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .environment import ROOT, ask_gpu, git_hash, require_known

STAGES = ("build", "test", "sanitize", "bench")
# Of the time left when the stage begins: the later ones are not starved by an early one that hangs.
SHARE = {"build": 0.5, "test": 0.45, "sanitize": 0.35, "bench": 1.0}
FAILED_SANITIZER = 86  # an exit status of its own, apart from pytest's
# The tests that take the device, of the native library and of Triton.
NATIVE, TRITON = ("tests/ops", "tests/models"), ("tests/test_triton.py",)
# Of the contract what runs kernels, rather than transforms of what calls them.
KERNELS = (
    "test_forward or test_gradients or test_layouts or test_repeatable or test_guard_bands or test_far_apart"
    " or test_not_finite or test_other_stream or test_cuda_graph"
)
SANITIZED = "test_layouts and (contiguous or permuted)"  # every kernel and its gradient on small inputs
INFO = (
    "import sys; from pyops.cli import main; sys.exit(main(['info']))"  # every operator once, on every device
)
WORKERS = 8  # where pytest can have several: most of the time goes into what runs before a kernel does
TEST_LIMIT_S = 120
LEFT = "{minutes}"  # in a command: what is left for it
TURNS_S = 1.0  # for each case: a sample takes milliseconds
NOTHING_SELECTED = 5  # pytest's exit status
GRACE_S = 10.0  # for a command that is out of time to say how far it came


class Step(NamedTuple):
    log: str
    command: list[str]
    environment: Mapping[str, str] = {}
    nothing: int | None = None  # the exit status that means there was nothing to do


def gpu(
    out: Path,
    stages: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    minutes: float = 9.0,
    wheels: Path | None = None,
    goals: bool = False,
) -> int:
    """Exit status 1 when a stage failed. Needs no pyops before it is built."""
    unknown = sorted(set(stages or ()) - set(STAGES))
    if unknown:
        raise ValueError(f"--stage: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    require_known("--only", only)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    environment = peers_environment(wheels, out)
    path = out / "summary.json"
    # Stages may come in several calls, where one command may not run for long.
    done: dict[str, Any] = json.loads(path.read_text())["stages"] if path.is_file() else {}
    failed = False
    chosen = [s for s in STAGES if s in (stages or STAGES)]
    for stage in chosen:
        limit = (1.0 if stage == chosen[-1] else SHARE[stage]) * max(0.0, end - time.monotonic())
        if stage == "build" or sees_gpu():
            done[stage] = run_stage(list(steps(stage, out, only, goals)), out, limit, environment)
        else:
            done[stage] = {"status": "failed", "reason": "torch sees no CUDA device", "seconds": 0.0}
        path.write_text(json.dumps({**machine(), "stages": done}, indent=1) + "\n")
        why = f", {done[stage]['reason']}" if "reason" in done[stage] else ""
        print(f"{stage}: {done[stage]['status']} ({done[stage]['seconds']:.0f} s{why})", flush=True)
        for step in done[stage].get("steps", ()):
            print("".join(f"  {line}\n" for line in step["tail"]), end="", flush=True)
        failed |= done[stage]["status"] not in ("passed", "skipped")
    return int(failed)


def sees_gpu() -> bool:
    return torch.cuda.is_available()


def machine() -> dict[str, Any]:
    asked = ask_gpu(gpu="name", driver="driver_version", memory="memory.total")
    return {"git": git_hash(), "torch": torch.__version__, "cuda": torch.version.cuda, **asked}


def steps(stage: str, out: Path, only: Sequence[str] | None, goals: bool = False) -> Iterator[Step]:
    """The commands of a stage. A sanitizer that is not installed gives none."""
    python = [sys.executable, "-m"]
    chosen = " or ".join(only or ())
    if stage == "build":
        command = [*python, "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
        # Code for this GPU alone: the rest would take minutes, and run nowhere.
        wanted = {"PYOPS_BUILD": "0"} if built() else ask_gpu(TORCH_CUDA_ARCH_LIST="compute_cap")
        yield Step("build.log", command, {k: v for k, v in wanted.items() if k not in os.environ})
        yield Step("info.log", [sys.executable, "-c", INFO])
    elif stage == "test":
        for name, paths, which in (
            ("kernels", NATIVE, KERNELS),
            ("triton", TRITON, KERNELS),
            ("others", NATIVE, f"not ({KERNELS})"),
        ):
            # Operators of Triton's tests are told by their cases, not by their files.
            expression = f"({which}) and ({chosen})" if chosen else which
            yield Step(f"{name}.log", pytest_command(paths, expression), nothing=NOTHING_SELECTED)
        # Gigabytes each, so one after the other.
        expression = "more_elements_than_32_bits" + (f" and ({chosen})" if chosen else "")
        large = [*pytest_command(NATIVE, expression, workers=1), "--slow"]
        yield Step("large.log", large, nothing=NOTHING_SELECTED)
    elif stage == "sanitize":
        reduced = f"({SANITIZED})" + (f" and ({chosen})" if chosen else "")
        for tool in ("memcheck", "racecheck") if shutil.which("compute-sanitizer") else ():
            checker = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FAILED_SANITIZER)]
            # Our kernels only: those of torch are many, and slow to check.
            checker += ["--kernel-name", "kns=pyops", "--target-processes", "all"]
            # One allocation per tensor: inside torch's pool an overrun lands in memory that is valid.
            apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            command = [*checker, *pytest_command(NATIVE, reduced, limit=False)]
            yield Step(f"{tool}.log", command, apart, nothing=NOTHING_SELECTED)
    elif stage == "bench":
        options = ["--device", "cuda", "--seconds", f"{TURNS_S:g}", "--out", str(out), "--minutes", LEFT]
        named = ["--op", *only] if only else []
        yield Step("bench.log", [*python, "bench", "run", *options, *(["--goals"] if goals else []), *named])


def built() -> bool:
    """Whether both libraries are newer than their sources: built before, or elsewhere and brought along."""
    libraries = [path.stat().st_mtime for path in (ROOT / "pyops").glob("_C*.so")]
    sources = [ROOT / "setup.py", *(ROOT / "csrc").glob("*/*")]
    return len(libraries) == 2 and min(libraries) > max(path.stat().st_mtime for path in sources)


def pytest_command(
    paths: Sequence[str], expression: str, limit: bool = True, workers: int = WORKERS
) -> list[str]:
    """In several processes where pytest-xdist is there. One that a kernel has broken or holds up is then replaced."""
    command = [sys.executable, "-m", "pytest", *(p for p in paths if (ROOT / p).exists())]
    command += ["-q", "--durations=10", "--device", "cuda", "-k", expression]
    workers = min(workers, os.cpu_count() or 1)
    if find_spec("xdist") and workers > 1:
        command += ["--numprocesses", str(workers), "--dist", "worksteal"]
        if limit and find_spec("pytest_timeout"):
            command += ["--timeout", str(TEST_LIMIT_S), "--timeout-method", "thread"]
    return command


def run_stage(
    commands: Sequence[Step], out: Path, limit_s: float, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run every step, also after one that failed; the worst status is the stage's."""
    start = time.monotonic()
    if not commands:
        return {"status": "skipped", "reason": "compute-sanitizer is not installed", "seconds": 0.0}
    for log in {step.log for step in commands}:
        (out / log).unlink(missing_ok=True)
    results = []
    for done, step in enumerate(commands):
        began = time.monotonic()
        left = max(1.0, limit_s - (began - start))
        status, code = run_step(step, out, left / (len(commands) - done), environment)
        taken = round(time.monotonic() - began, 1)
        last = tail((out / step.log).read_text(errors="replace"))
        results.append({"status": status, "exit": code, "seconds": taken, "log": step.log, "tail": last})
    found = {r["status"] for r in results}
    worst = next(status for status in ("failed", "timeout", "passed", "skipped") if status in found)
    return {"status": worst, "seconds": round(time.monotonic() - start, 1), "steps": results}


def run_step(step: Step, out: Path, limit_s: float, environment: Mapping[str, str]) -> tuple[str, int | None]:
    # A command that keeps to a time ends by itself, shortly before it would be ended.
    minutes = f"{max(0.1, (limit_s - 2 * GRACE_S) / 60):.2f}"
    command = [minutes if part == LEFT else part for part in step.command]
    with open(out / step.log, "a") as log:
        log.write("$ " + " ".join(command) + "\n")
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **step.environment},
            start_new_session=True,  # so that a timeout ends what the command started, too
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # on which pytest reports what has failed so far
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "timeout", None
    return {0: "passed", step.nothing: "skipped"}.get(code, "failed"), code


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
