"""Run as a program: says where the contract's cases would leave the GPU, by tensors of a made-up device without memory.

A draw of inputs is taken for one on that device. Whatever then meets a tensor on the CPU, in a public function, its
definition or a helper of a case, would fail on a GPU. A program of its own, since torch keeps a device that it has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contract

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


def complain(what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (*NEEDS_VALUES, NotImplementedError):  # this device has no values, nor all that a GPU has
        return None
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {error}".splitlines()[0])


def main() -> None:
    _setup_privateuseone_for_python_backend("elsewhere")
    device = torch.device("elsewhere:0")
    for case in contract.all_cases():
        drawn = case.inputs(case.small[0], torch.float32)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            inputs = tree_map_only(torch.Tensor, lambda t, m=mode: FakeTensor(m, t.to("meta"), device), drawn)
            name = contract.case_name(case)
            for kind, function in (("function", case.function), ("definition", case.reference)):
                complain(f"{name}, {kind}", lambda f=function, x=inputs: f(**x))
            for wanted in (None, *case.differentiable):
                complain(f"{name}, band", lambda c=case, x=inputs, w=wanted: c.near_discontinuity(x, w))
            if case.poison:
                complain(f"{name}, poison", lambda c=case, x=inputs: c.poison(x, float("nan")))
            for wrong in complain(f"{name}, invalid", lambda c=case, x=inputs: list(c.invalid(x))) or ():
                refused(name, case, inputs, wrong)
    print("looked at all")


def refused(name: str, case: Any, inputs: dict[str, Any], wrong: Any) -> None:
    """What the host sees without waiting is refused there, too."""
    try:
        case.function(**{**inputs, **wrong.change})
    except (wrong.error, *NEEDS_VALUES):
        return
    except Exception as error:
        print(f"{name}, {wrong.label}: {type(error).__name__} in place of {wrong.error.__name__}")
    else:
        if not contract.by_value(inputs, wrong):
            print(f"{name}, {wrong.label}: not refused")


if __name__ == "__main__":
    main()
