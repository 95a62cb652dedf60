"""The contract can run on a GPU: nothing in its cases stays behind on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_cases_stay_on_their_device():
    program = [sys.executable, str(Path(__file__).with_name("one_device.py"))]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "looked at all\n", done.stdout
