"""Finds and loads the two native libraries, and says in one sentence what to do where that fails.

`_C` holds every schema and the CPU kernels and must load. `_C_cuda` holds the CUDA kernels; it is loaded beside a torch
with CUDA, and where it is missing the Triton kernels serve CUDA tensors instead.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

import torch

__version__ = "0.1.0"
_HERE = Path(__file__).resolve().parent

cuda_loaded = False
cuda_problem: str | None = None  # why CUDA tensors go without native kernels


def _find(stem: str) -> str | None:
    """Path of a native library; an editable install keeps it here, in the source tree."""
    return next(iter(sorted(glob.glob(os.path.join(_HERE, f"{stem}.*so")))), None)


def _reason(error: OSError) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0]


def _load() -> None:
    global cuda_loaded, cuda_problem
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
        raise ImportError(f"pyops needs torch>=2.11 but found {torch.__version__}; upgrade torch.")
    path = _find("_C")
    if path is None:
        raise ImportError(
            f"pyops has no native library in {_HERE}; if this is a source tree, run "
            "'pip install --no-build-isolation -e .' in it, or leave its folder to use the installed package."
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"pyops could not load {path} ({_reason(error)}); build it again with "
            "'pip install --no-build-isolation --force-reinstall --no-deps .' in its source tree."
        ) from error
    if torch.version.cuda is None:
        cuda_problem = "this torch has no CUDA; install a CUDA build of torch"
        return
    path = _find("_C_cuda")
    if path is None:
        cuda_problem = "pyops was built without CUDA; reinstall it with nvcc on PATH and PYOPS_CUDA=1"
        return
    try:
        torch.ops.load_library(path)
        cuda_loaded = True
    except OSError as error:
        cuda_problem = (
            f"{path} did not load ({_reason(error)}); reinstall pyops for CUDA {torch.version.cuda}"
        )


def build_info() -> dict[str, str | None]:
    """What is installed and loaded: versions, library paths, and why CUDA kernels are absent if they are."""
    return {
        "pyops": __version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpu_library": _find("_C"),
        "cuda_library": _find("_C_cuda") if cuda_loaded else None,
        "cuda_problem": cuda_problem,
    }


_load()
