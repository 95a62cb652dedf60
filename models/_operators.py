"""Where the operators of a model come from: `pyops`, or `pyops.reference`."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn


class UsesOperators(nn.Module):
    """A module with `ops`, which copies and pickles keep by the name of the module."""

    ops: Any

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "ops": self.ops.__name__} if isinstance(self.ops, ModuleType) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)
