"""Who may import whom, and that every operator has its file in every layer."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import pyops
from pyops._samples import SAMPLES

ROOT = Path(__file__).resolve().parents[1]
PLAIN_ON_CUDA = {"knn_graph"}  # PyTorch's operators serve there
STEMS = sorted(path.stem for path in (ROOT / "pyops" / "ops").glob("[!_]*.py"))

# For each layer, the packages of this project (and torch's kin) that it may import; longest match counts.
ALLOWED = {
    "pyops.ops": {"pyops._op", "pyops._native", "pyops.reference", "pyops.ops"},
    "pyops.reference": {"pyops.reference"},
    "pyops.triton": {"pyops.triton", "triton"},
    "pyops.compat": {"pyops", "pyops.compat"},
    "pyops.correct": {"pyops.io", "pyops.models"},
    "pyops.distributed": {"pyops.ops", "pyops.reference"},
    "pyops.io": {"pyops", "pyops.io"},
    "pyops.stereo": {"pyops.io", "pyops.models"},
    "pyops.models": {"pyops", "pyops.models"},
}
STANDARD_ONLY = ("pyops.reference", "pyops.triton")  # besides torch


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("pyops", *parts) if parts[0] == "models" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(text: str, module: str, package: bool) -> set[str]:
    """Absolute names that a module imports: ``from a import b`` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")
            parents = parents[: len(parents) - node.level + package] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    path = ROOT.joinpath(*name.split(".")[1:]) if name.startswith("pyops.models") else path
    return path.is_dir() or path.with_suffix(".py").is_file()


def faults(module: str, names: set[str]) -> list[str]:
    layer = next((layer for layer in ALLOWED if module == layer or module.startswith(f"{layer}.")), None)
    wrong = []
    for name in sorted(names):
        top = name.split(".")[0]
        target = name if is_module(name) else name.rpartition(".")[0]
        if top in ("bench", "tests", "models"):
            wrong.append(f"{module} imports {name}")
        elif layer and top == "pyops":
            allowed = any(
                target == a or (a != "pyops" and target.startswith(f"{a}.")) for a in ALLOWED[layer]
            )
            public = target != "pyops" or name == "pyops" or name.removeprefix("pyops.") in pyops.__all__
            if not allowed or not public:
                wrong.append(f"{module} imports {name}")
        elif layer in STANDARD_ONLY and top not in {"torch", "__future__", *STANDARD, *ALLOWED[layer]}:
            wrong.append(f"{module} imports {name}")
    return wrong


STANDARD = {"collections", "functools", "math", "typing"}
FILES = sorted((ROOT / "pyops").rglob("*.py")) + sorted((ROOT / "models").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_arrows(path):
    module = module_name(path)
    assert not faults(module, imports(path.read_text(), module, path.name == "__init__.py"))


@pytest.mark.parametrize(
    "module, text",
    (
        ("pyops.models.cotf", "from pyops.ops.lut3d import lut3d"),
        ("pyops.models.cotf", "from pyops import _op"),
        ("pyops.correct", "from pyops.ops.lut3d import lut3d"),
        ("pyops.io.images", "from pyops.models import CoTF"),
        ("pyops.cli", "import models"),
        ("pyops.cli", "from bench import run"),
        ("pyops.reference.lut3d", "from ..ops import lut3d"),
        ("pyops.reference.lut3d", "import numpy"),
        ("pyops.triton.lut3d", "from .. import _op"),
        ("pyops.ops.lut3d", "from ..triton import lut3d"),
        ("pyops.compat.ailut", "from .._op import declare"),
    ),
)
def test_wrong_arrows_are_seen(module, text):
    assert faults(module, imports(text, module, package=False))


@pytest.mark.parametrize("stem", STEMS)
def test_every_operator_is_in_every_layer(stem):
    files = [
        *(f"csrc/{stem}/{stem}.{kind}" for kind in ("h", "cpp", *([] if stem in PLAIN_ON_CUDA else ["cu"]))),
        *(f"{layer}/{stem}.py" for layer in ("pyops/ops", "pyops/reference", "bench/ops")),
        f"tests/ops/test_{stem}.py",
    ]
    missing = [name for name in files if not (ROOT / name).is_file()]
    assert not missing
    lines = (ROOT / "pyops" / "__init__.py").read_text().splitlines()
    assert len([line for line in lines if line.startswith(f"from .ops.{stem} import")]) == 1


def test_nothing_is_in_a_layer_without_an_operator():
    for folder in ("pyops/reference", "pyops/triton", "bench/ops"):
        stems = {path.stem for path in (ROOT / folder).glob("[!_]*.py")}
        assert stems <= set(STEMS), folder
    assert {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} == {"common", *STEMS}


def test_public_names_have_a_definition_and_a_self_check():
    functions = {name for name in pyops.__all__ if inspect.isfunction(getattr(pyops, name))}
    functions -= {"build_info", "keep_memory"}
    assert functions == set(pyops.reference.__all__) == set(SAMPLES)
