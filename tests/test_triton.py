"""The contract once more, on the Triton kernels by Triton's interpreter."""

from __future__ import annotations

import contract
import pytest

from pyops import testing

pytestmark = pytest.mark.skipif(
    "triton" not in testing.backends(), reason="no Triton kernels, or no interpreter"
)


class TestContract(contract.Contract):
    cases = contract.all_cases()
    backend = "triton"
