"""Builds the two native libraries of pyops: `_C` (schemas and CPU kernels) and `_C_cuda` (CUDA kernels).

Variables: TORCH_CUDA_ARCH_LIST, MAX_JOBS and CUDA_HOME as everywhere; PYOPS_CUDA=1 forces the CUDA library and
PYOPS_CUDA=0 leaves it out. PYOPS_BUILD=0 installs what lies in pyops/ already, and builds nothing.
"""

import glob
import os
import shutil
import sys

from setuptools import setup

wants_none = {"sdist", "egg_info", "clean"}.issuperset(sys.argv[1:2]) and len(sys.argv) > 1
if wants_none or os.environ.get("PYOPS_BUILD") == "0":
    setup()
    sys.exit()

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit("pyops: torch is missing; install torch>=2.11 first, then: pip install --no-build-isolation .")
if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 11):
    sys.exit(f"pyops: torch {torch.__version__} is too old; install torch>=2.11.")
if shutil.which((os.environ.get("CXX") or "c++").split()[0]) is None:  # CXX may be "ccache g++"
    sys.exit("pyops: no C++ compiler found; install g++ (Debian: apt-get install g++) or set CXX to one.")

ROOT = os.path.dirname(os.path.abspath(__file__))
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the stable ABI of torch 2.11: one build fits every later torch
# Nothing here reads floating-point exception flags: without them more loops vectorise.
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wno-psabi",
    TARGET,
]


def sources(pattern):
    return sorted(glob.glob(pattern, root_dir=ROOT))


def cuda_extension():
    """The CUDA library, or None where it is not wanted or cannot be had."""
    mode = os.environ.get("PYOPS_CUDA", "auto")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin")) or shutil.which("nvcc")
    if mode == "0" or (mode == "auto" and (torch.version.cuda is None or nvcc is None)):
        return None
    if nvcc is None:
        sys.exit(
            "pyops: PYOPS_CUDA=1 but nvcc was not found; put it on PATH, set CUDA_HOME, or unset PYOPS_CUDA."
        )
    home = cpp_extension.CUDA_HOME = cpp_extension.CUDA_HOME or os.path.dirname(os.path.dirname(nvcc))
    newest = os.popen(f'"{nvcc}" --list-gpu-arch').read()
    os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", "8.0;8.6;8.9;9.0+PTX" + (";12.0" if "compute_120" in newest else "")
    )
    # The runtime is linked statically and torch's stream is looked up at run time (common/launch.cuh), so the library
    # also links, and loads, beside a torch without CUDA.
    return cpp_extension.CppExtension(
        "pyops._C_cuda",
        sources("csrc/*/*.cu"),
        py_limited_api=True,
        include_dirs=[os.path.join(home, "include")],
        library_dirs=[os.path.join(home, "lib64")],
        libraries=["cudart_static", "rt", "dl", "pthread"],
        extra_link_args=["-s"],
        extra_compile_args={"cxx": FLAGS, "nvcc": ["-O3", "-std=c++17", TARGET, "-DUSE_CUDA", "--threads=2"]},
    )


cpu = cpp_extension.CppExtension(
    "pyops._C",
    sources("csrc/*/*.cpp"),
    py_limited_api=True,
    extra_link_args=["-s"],
    extra_compile_args={"cxx": FLAGS},
)
setup(
    ext_modules=[extension for extension in (cpu, cuda_extension()) if extension],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
