"""The contract once more, on the Triton kernels: by Triton's interpreter, or compiled for the GPU there is."""

from __future__ import annotations

import contract
import pytest

from pyops import testing


class TestContract(contract.Contract):
    cases = contract.all_cases()
    backend = "triton"

    @pytest.fixture(autouse=True)
    def _backend(self, device):
        if device == "cpu" and "triton" not in testing.backends():
            pytest.skip("no Triton kernels, or no interpreter")
        with testing.backend(self.backend, device):
            yield
