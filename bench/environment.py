"""What a number was measured on, and with what."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def benchmarks() -> dict[str, str]:
    """What can be measured, and of which kind it is: operators first. Found by file, without importing pyops."""
    return {
        path.stem: kind
        for kind in ("op", "model")
        for path in sorted((ROOT / "bench" / f"{kind}s").glob("[!_]*.py"))
    }


def require_known(option: str, names: Iterable[str] | None) -> None:
    known = benchmarks()
    if unknown := sorted(set(names or ()) - known.keys()):
        raise ValueError(f"{option}: expected one of {', '.join(known)}, got {', '.join(unknown)}")


def describe(device: torch.device) -> dict[str, Any]:
    import pyops

    common = {
        "device": device.type,
        "name": device_name(device),
        "slug": slug(device),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "pyops": pyops.__version__,
        "git": git_hash(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        kernels = "native" if pyops._native.build_info()["cuda_library"] else "Triton"
        facts = {"cuda": torch.version.cuda, "kernels": kernels, "l2_bytes": l2_bytes}
        return common | facts | _driver_and_clocks()
    return common | {"isa": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count()}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def plain_name(name: str) -> str:
    """Without what says nothing to a reader."""
    return " ".join(re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b", " ", name).split())


def slug(device: torch.device) -> str:
    """The folder of this device's results: `nvidia-h200`, `cpu-amd-epyc-2t`."""
    name = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", " ", device_name(device).lower())
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return name if device.type == "cuda" else f"cpu-{name}-{torch.get_num_threads()}t"


def git_hash() -> str:
    """Short hash of the checkout, with `+` when it holds uncommitted changes outside the results."""
    commit = _run("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    ours = (".", ":!bench/results", ":!README.md")
    changes = _run("git", "-C", str(ROOT), "status", "--porcelain", "--", *ours)
    return (commit or "unknown") + ("+" if changes else "")


def _driver_and_clocks() -> dict[str, str]:
    return ask_gpu(driver="driver_version", sm_clock="clocks.sm", memory_clock="clocks.mem")


def ask_gpu(**keys: str) -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where there is none."""
    told = _run("nvidia-smi", f"--query-gpu={','.join(keys.values())}", "--format=csv,noheader")
    values = told.splitlines()[0].split(", ") if told else []
    return dict(zip(keys, values, strict=False))


def _run(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
