"""Options of the test run: the device, and whether the slow tests take part."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `import contract`, which is no test itself
pytest.register_assert_rewrite("closeness", "contract", "streams", "transforms")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the contract runs")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
    from pyops import testing

    torch.set_num_threads(min(2, torch.get_num_threads()))
    if config.getoption("--device") == "cpu":
        testing.backends()  # imports Triton with its interpreter before torch.compile imports it without


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") != "cpu":  # what does not ask for the device would run on a CPU, again
        asking = [i for i in items if "device" in i.fixturenames or "gpu" in i.keywords]
        config.hook.pytest_deselected(items=[i for i in items if i not in set(asking)])
        items[:] = asking
    unwanted = {} if config.getoption("--slow") else {"slow": "slow: run with --slow"}
    if not torch.cuda.is_available():
        unwanted["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in unwanted.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A kernel that has broken the GPU for its process would fail all tests behind it: this one of several processes
    ends, and another takes its place."""
    report = yield
    if (
        report.failed
        and item.config.getoption("--device") == "cuda"
        and os.environ.get("PYTEST_XDIST_WORKER")
    ):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            print(report.longreprtext, file=sys.__stderr__, flush=True)
            os._exit(3)
    return report


@pytest.fixture
def device(request) -> str:
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
