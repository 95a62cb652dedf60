"""The contract can run on a GPU: nothing in its cases stays behind on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch makes up no devices",
)
def test_cases_stay_on_their_device():
    program = [sys.executable, str(Path(__file__).with_name("one_device.py"))]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "looked at all\n", done.stdout
