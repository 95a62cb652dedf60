"""The weights that come with pyops, on photographs that no part of was seen in training (examples/train_cotf.py)."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pyops.models import CoTF

import pyops
from pyops import models

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(models.__file__).with_name("cotf.pt")
CAMERAS = 12


@pytest.fixture(scope="module")
def exposure():
    pytest.importorskip("PIL")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import exposure
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return exposure


@pytest.fixture(scope="module")
def model() -> CoTF:
    return CoTF.pretrained()


@pytest.fixture(params=("coffee.png", "motorcycle_left.png"))
def photo(request, exposure) -> torch.Tensor:
    """``[3, H, 400]``."""
    pytest.importorskip("skimage")
    assert request.param in exposure.HELD_OUT["skimage"]
    assert request.param not in exposure.TRAINING["skimage"]
    found = exposure.photographs({"skimage": [request.param]})[request.param]
    height = round(found.shape[1] * 400 / found.shape[2])
    return F.interpolate(found[None], (height, 400), mode="bilinear", antialias=True)[0]


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    return -10 * math.log10((x - y).square().mean().item())


@torch.inference_mode()
def gain(exposure, model: CoTF, photo: torch.Tensor, ev: float) -> float:
    """dB, the mean over cameras."""
    rng, gains = random.Random(7), []
    for _ in range(CAMERAS):
        taken = exposure.expose(photo, ev, exposure.Camera.drawn(rng))
        corrected = model(taken[None]).clamp(0, 1)[0]
        gains.append(psnr(corrected, photo) - psnr(taken, photo))
    return sum(gains) / CAMERAS


def test_file_is_small_and_plain():
    assert WEIGHTS.stat().st_size < 2e6
    state = torch.load(WEIGHTS, weights_only=True)
    assert state.keys() == CoTF().state_dict().keys()
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in state.values())


@pytest.mark.parametrize("ev", (-1.5, 1.5))
def test_wrong_exposure_is_corrected(exposure, model, photo, ev):
    assert gain(exposure, model, photo, ev) >= 4


def test_right_exposure_is_left_alone(exposure, model, photo):
    assert gain(exposure, model, photo, 0) >= -0.5


def test_right_exposure_is_not_spoilt(model, photo):
    with torch.inference_mode():
        assert psnr(model(photo[None]).clamp(0, 1)[0], photo) >= 32


def test_integer_photographs(model, photo):
    """The same correction in 8 bits, and by the definition layer by layer."""
    taken = (photo * 255 * 0.4).round()
    with torch.inference_mode():
        expected = model(taken[None] / 255).clamp(0, 1) * 255
        found = model(taken[None].to(torch.uint8))
        layers = CoTF.pretrained(ops=pyops.reference)(taken[None] / 255).clamp(0, 1) * 255
    assert found.dtype == torch.uint8
    assert (found - expected).abs().max() <= 0.5 + 1e-2
    torch.testing.assert_close(layers, expected, rtol=0, atol=0.1)
