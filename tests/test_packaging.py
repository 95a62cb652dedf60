"""The wheel: its contents, its symbols, that it works elsewhere; and what a build says that cannot work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyops

ROOT = Path(__file__).resolve().parents[1]


def run(*command, cwd, **env):
    environment = {**os.environ, "PYOPS_CUDA": "0", **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing of an editable install helps."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    result = run(*command, "-w", str(folder), str(source), cwd=folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("target")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.mark.slow
def test_wheel_contents(wheel):
    assert wheel.name.startswith(f"pyops-{pyops.__version__}-cp310-abi3-linux")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pyops", f"pyops-{pyops.__version__}.dist-info"}
    assert {"pyops/__init__.py", "pyops/models/__init__.py", "pyops/_C.abi3.so", "pyops/py.typed"} <= set(
        names
    )
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "pyops").rglob("*.py")}
    assert sources <= set(names)
    assert not [name for name in names if re.search(r"(^|/)(tests?|bench|csrc)/", name)]


@pytest.mark.slow
def test_native_library_needs_only_stable_symbols(installed):
    symbols = run("nm", "-D", "--undefined-only", str(installed / "pyops" / "_C.abi3.so"), cwd=installed)
    assert symbols.returncode == 0 and "aoti_torch" in symbols.stdout
    assert not re.findall(r"_ZNK?\d*(?:2at|3c10|5torch)\w*|\bPy\w+|\b_Py\w+", symbols.stdout)


@pytest.mark.slow
def test_abi_audit(installed):
    audit_program = Path(sys.executable).with_name("torch-abi-audit")
    if not audit_program.exists():
        pytest.skip("torch-abi-audit is not installed")
    audit = run(str(audit_program), "--check", "torch", str(installed), cwd=installed)
    assert audit.returncode == 0 and "STABLE" in audit.stdout, audit.stdout + audit.stderr


@pytest.mark.slow
def test_wheel_works_elsewhere(installed, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import pyops, pyops.models; "
        "from pyops.testing import self_check; assert all(check.ok for check in self_check()); "
        "print(pyops.__file__)"
    )
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(installed))


def test_one_version():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', text, re.MULTILINE)[1] == pyops.__version__


# ---- builds that cannot work ---------------------------------------------------------------------------

STUBS = {
    "missing": 'raise ImportError("no torch here")',
    "old": '__version__ = "2.9.1+cpu"',
}


def setup(tmp_path, stub=None, **env):
    if stub is not None:
        package = tmp_path / "torch"
        (package / "utils").mkdir(parents=True)
        (package / "__init__.py").write_text(stub + "\n")
        (package / "utils" / "__init__.py").write_text("")
        (package / "utils" / "cpp_extension.py").write_text("")
        env["PYTHONPATH"] = str(tmp_path)
    output = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    return run(sys.executable, "setup.py", "build", *output, cwd=ROOT, **env)


@pytest.mark.parametrize(
    "stub, env, message",
    (
        ("missing", {}, "pyops: torch is missing; install torch"),
        ("old", {}, "pyops: torch 2.9.1+cpu is too old; install torch>=2.11"),
        (None, {"CXX": "/nonexistent"}, "pyops: no C++ compiler found; install g++"),
        (
            None,
            {"PYOPS_CUDA": "1", "CUDA_HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
            "nvcc was not found",
        ),
    ),
    ids=("torch missing", "torch too old", "no compiler", "no nvcc"),
)
def test_build_says_what_is_missing(tmp_path, stub, env, message):
    if "nvcc" in message and shutil.which("nvcc", path=env["PATH"]):
        pytest.skip("nvcc is among the system's own programs")
    result = setup(tmp_path, STUBS.get(stub), **env)
    assert result.returncode != 0
    lines = result.stderr.strip().splitlines()
    assert message in lines[-1] and "Traceback" not in result.stderr, result.stderr
