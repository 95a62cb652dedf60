"""Compiles the CUDA sources as plain C++ against the emulator and registers them as ``pyops_simt``."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
OUTPUT = ROOT / "build" / "simt"

# Hidden and not unique: two libraries built with the emulator must not share its state in one process.
CXX_FLAGS = "-x c++ -std=c++17 -O1 -g -fPIC -fvisibility=hidden -fno-gnu-unique -Wall -fmax-errors=10".split()
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{shlex.join(command)}\nfailed with status {result.returncode}:\n{result.stderr}")


def _digest(flags: Sequence[str], files: Sequence[Path]) -> str:
    """A name for what the compiler makes of these files with these flags."""
    digest = hashlib.sha256("\0".join([*compiler(), *flags]).encode())
    for file in files:
        digest.update(f"\0{file}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _make(target: Path, command: Sequence[str]) -> Path:
    """Runs ``command -o target`` unless the target exists; an interrupted run leaves no half-made target."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        _run([*command, "-o", str(partial)])
        partial.replace(target)
    return target


def sanitizer_preload() -> str:
    """The ``LD_PRELOAD`` with which Python can load a sanitized library; empty where there is none."""
    paths = []
    # The C++ library too: when the sanitizer starts, it looks for the functions that it wraps.
    for name in ("libasan.so", "libstdc++.so"):
        command = [*compiler(), f"-print-file-name={name}"]
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return " ".join(paths) if all(map(os.path.isabs, paths)) else ""


def build_library(
    sources: Sequence[Path],
    compile_flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    sanitize: bool = False,
) -> Path:
    """The shared library made of ``sources`` with the emulator; compiled only where something changed."""
    extra = SANITIZE if sanitize else []
    flags = [*CXX_FLAGS, *compile_flags, *extra, f"-I{CSRC}", f"-I{HERE}"]
    headers = sorted(
        path for folder in (CSRC, HERE) for kind in ("h", "cuh") for path in folder.rglob(f"*.{kind}")
    )

    def compiled(source: Path) -> Path:
        target = OUTPUT / f"{source.stem}-{_digest(flags, [source, *headers])}.o"
        return _make(target, [*compiler(), *flags, "-c", str(source)])

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compiled, sources))
    name = f"simt-{_digest([*extra, *link_flags], objects)}.so"
    return _make(OUTPUT / name, [*compiler(), "-shared", *extra, *map(str, objects), *link_flags])


def build(sources: Sequence[Path] | None = None, sanitize: bool = False) -> Path:
    """The library with the CUDA half of every op (or of ``sources``), to be loaded by torch."""
    import torch
    from torch.utils import cpp_extension

    compile_flags = ["-DPYOPS_EMULATE", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    # Nobody reads this one: it makes another torch mean another build.
    compile_flags.append(f'-DSIMT_TORCH="{torch.__version__}"')
    for path in cpp_extension.include_paths():
        compile_flags += ["-isystem", path]
    link_flags = ["-ltorch", "-ltorch_cpu", "-lc10"]
    for path in cpp_extension.library_paths():
        link_flags += [f"-L{path}", f"-Wl,-rpath,{path}"]
    if sources is None:
        sources = sorted(CSRC.glob("*/*.cu"))
    return build_library(sources, compile_flags, link_flags, sanitize)


@functools.cache
def load(sanitize: bool = False) -> ctypes.CDLL:
    """Makes ``torch.ops.pyops_simt.X`` run the emulated CUDA kernel of every ``torch.ops.pyops.X``.

    The result sets the emulator's options: ``pyops_simt_set_seed(n)`` (another order of threads),
    ``pyops_simt_set_shared_limit(bytes)`` and ``pyops_simt_set_multiprocessors(n)``. A sanitized library
    can be loaded only by a process started with ``sanitizer_preload()``.
    """
    import torch

    import pyops  # noqa: F401  (defines the schemas)

    path = build(sanitize=sanitize)
    handle = ctypes.CDLL(str(path))
    library = torch.library.Library("pyops_simt", "FRAGMENT")
    for op in torch._C._dispatch_get_all_op_names():
        if op.startswith("pyops::") and torch._C._dispatch_has_kernel_for_dispatch_key(op, "CPU"):
            name, _, overload = op.partition(".")
            library.define(str(torch._C._get_schema(name, overload)).removeprefix("pyops::"))
    torch.ops.load_library(path)
    handle.definitions = library  # type: ignore[attr-defined]  # they last as long as this object
    return handle
