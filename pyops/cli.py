"""`pyops info | correct | stereo | demo | bench`, also as `python -m pyops`."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from . import _native, correct, demo, stereo, testing

ROOT = Path(__file__).resolve().parents[1]  # the checkout, where pyops runs from one


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["bench"]:  # has a parser of its own, which shall see even --help
        return bench(argv[1:])
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command == "info":
        return info()
    if args.command == "correct":
        return correct.run(args)
    if args.command == "stereo":
        return stereo.run(args)
    if args.command == "demo":
        return demo.run(args)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyops", description="Fused vision operators for PyTorch.")
    parser.add_argument("--version", action="version", version=f"pyops {_native.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help="show versions, libraries and devices, and check every operator")
    correct.add_arguments(commands.add_parser("correct", help="correct the exposure of pictures and videos"))
    stereo.add_arguments(
        commands.add_parser("stereo", help="find the disparity of a rectified pair, and points")
    )
    demo.add_arguments(
        commands.add_parser("demo", help="correct and grade a photograph, beside stock PyTorch")
    )
    commands.add_parser("bench", help="measure speed, in a checkout: the same as python -m bench")
    return parser


def info() -> int:
    """Show what is installed and run every operator once; 1 if one of them is wrong."""
    for label, text in _facts():
        print(f"{label:14} {text}")
    print("\nEvery operator against its definition:")
    checks = testing.self_check()
    width = max(len(check.op) for check in checks)
    for check in checks:
        verdict = "ok    " if check.ok else "FAILED"
        print(
            f"  {verdict} {check.op:{width}} {check.device:8} {check.problem or f'max. error {check.max_error:.1e}'}"
        )
    wrong = [check for check in checks if not check.ok]
    print(f"{len(wrong)} of {len(checks)} failed." if wrong else "All right.")
    return 1 if wrong else 0


def _facts() -> Iterator[tuple[str, str]]:
    build = _native.build_info()
    yield "pyops", str(build["pyops"])
    yield "torch", str(build["torch"])
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "CUDA", build["cuda"] or "none"
    yield "Triton", _version("triton") or "none"
    yield "CPU kernels", str(build["cpu_library"])
    yield "CUDA kernels", build["cuda_library"] or f"none: {build['cuda_problem']}"
    capability = torch.backends.cpu.get_cpu_capability()
    yield "CPU", f"{_cpu_model()}, {torch.get_num_threads()} threads, {capability}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        yield f"GPU {index}", f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory}"
    if not torch.cuda.device_count():
        yield "GPU", "none that this torch can use"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def bench(argv: Sequence[str]) -> int:
    """Hand over to the benchmark suite, which is part of a checkout and not of an installed package."""
    if not (ROOT / "bench" / "__main__.py").is_file():
        print(
            "pyops bench needs the source: clone it, run 'pip install --no-build-isolation -e .' there.",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("bench.__main__").main(argv)
