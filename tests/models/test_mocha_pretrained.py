"""What weights of MoCha-Stereo must reach to come with pyops, on pairs of which nothing was seen in training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyops.models import MoChaStereo

from pyops import models, stereo

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(models.__file__).with_name("mocha_stereo.pt")
DATA = ROOT.parent / "shared" / "data" / "stereo"
ITERS = 8
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights of MoCha-Stereo come along")


@pytest.fixture(scope="module")
def train():
    for package in ("PIL", "rich", "matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package)
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import train_mocha
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return train_mocha


@pytest.fixture(scope="module")
def model() -> MoChaStereo:
    return MoChaStereo.pretrained()


@pytest.fixture(scope="module")
def real_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """``[1, 3, 248, 359]`` each."""
    image = pytest.importorskip("PIL.Image")
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is absent")
    views = []
    for name in ("im0.png", "im1.png"):
        with image.open(DATA / name) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float()
        views.append(F.interpolate(pixels, scale_factor=0.5, mode="bilinear", antialias=True))
    return views[0], views[1]


def test_file_is_small_and_plain():
    assert WEIGHTS.stat().st_size < 10e6
    state = torch.load(WEIGHTS, weights_only=True)
    assert state.keys() == MoChaStereo().state_dict().keys()
    assert all(t.is_floating_point() and t.isfinite().all() for t in state.values())


def test_unseen_scenes(train, model):
    found = train.evaluate(model, train.unseen_scenes(), ITERS)
    assert found["epe"] < 1 and found["epe_seen"] < found["epe"]


def test_pair_with_measured_disparities(train, model):
    pair = train.Scene(*(part[None] for part in train.real_pair()))
    assert train.evaluate(model, pair, ITERS)["epe"] < 2


@torch.inference_mode()
def test_left_and_right_agree(model, real_pair):
    """The right view's disparity is that of the mirrored pair."""
    left, right = real_pair
    found = model(left, right, iters=ITERS)
    mirrored = model(right.flip(3), left.flip(3), iters=ITERS).flip(3)
    assert stereo.consistent(found, mirrored).float().mean() > 0.6
    low, high = found.quantile(0.01), found.quantile(0.99)
    assert 0 < low and low + 10 < high < 48
