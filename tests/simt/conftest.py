from __future__ import annotations

import pytest

from . import build


@pytest.fixture
def emulator():
    """The emulated kernels; whatever a test sets of them is undone."""
    library = build.load()
    yield library
    library.pyops_simt_set_seed(0)
    library.pyops_simt_set_shared_limit(232448)
