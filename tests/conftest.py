"""Options of the test run: the device, and whether the slow tests take part."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `import contract`, which is no test itself
pytest.register_assert_rewrite("closeness", "contract", "transforms")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the contract runs")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
    from pyops import testing

    torch.set_num_threads(min(2, torch.get_num_threads()))
    if config.getoption("--device") == "cpu":
        testing.backends()  # imports Triton with its interpreter before torch.compile imports it without


def pytest_collection_modifyitems(config, items):
    unwanted = {} if config.getoption("--slow") else {"slow": "slow: run with --slow"}
    if not torch.cuda.is_available():
        unwanted["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in unwanted.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device(request) -> str:
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
