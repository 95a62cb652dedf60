"""The examples that render stereo pairs and train MoCha-Stereo on them (examples/stereo_scenes.py, train_mocha.py)."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from pyops.models import MoChaStereo
from torch.testing import assert_close

import pyops

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZE, MOST = (96, 160), 32


@pytest.fixture(scope="module")
def stereo_scenes():
    for package in ("PIL", "matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package)
    sys.path.insert(0, str(EXAMPLES))
    try:
        import stereo_scenes
    finally:
        sys.path.remove(str(EXAMPLES))
    return stereo_scenes


@pytest.fixture(scope="module")
def photos(stereo_scenes) -> dict[str, torch.Tensor]:
    return stereo_scenes.photographs(stereo_scenes.TEXTURES)


def test_right_view_warped_is_the_left_view(stereo_scenes, photos, monkeypatch):
    """Between equal cameras: but for occlusions, edges and what interpolation blurs. Half a pixel more is worse."""
    monkeypatch.setattr(stereo_scenes.Scenes, "_photographed", lambda self, *views: views)
    scenes = stereo_scenes.Scenes(photos, seed=0)
    errors = []
    for _ in range(12):
        left, right, disparity, occluded = scenes.scene(*SIZE, MOST)
        found = []
        for wrong in (0, -0.5, 0.5):
            warped = pyops.reference.disparity_warp(right[None], disparity[None, None] + wrong)[0]
            error = (warped - left).abs().mean(0)
            found.append(error[~occluded].mean())
        assert error[occluded].mean() > 3 * found[0]
        errors.append(torch.stack(found))
    exact, less, more = torch.stack(errors).T
    assert exact.max() < 0.02 and exact.median() < 0.01
    assert (exact < 0.8 * less).all() and (exact < 0.8 * more).all()


def test_occlusion_is_what_the_other_view_does_not_show(stereo_scenes, photos):
    """The nearest of the points that fall on a pixel of the right view is seen there, others are not."""
    scenes = stereo_scenes.Scenes(photos, seed=3)
    wrong, count = 0, 0
    for _ in range(12):
        _, _, disparity, occluded = scenes.scene(*SIZE, MOST)
        there = torch.arange(SIZE[1]) - disparity
        column = there.round().long().clamp(min=0)
        front = torch.zeros(SIZE).scatter_reduce(1, column, disparity, "amax")
        expected = (there < 0) | (front.gather(1, column) > disparity + 1)
        wrong += (expected != occluded).sum().item()
        count += expected.sum().item()
    assert wrong < 0.15 * count, "which differ by the width of a pixel"


def test_scenes(stereo_scenes, photos):
    scenes = stereo_scenes.Scenes(photos, seed=1)
    left, right, disparity, occluded = scenes.batch(16, *SIZE, MOST)
    assert left.shape == right.shape == (16, 3, *SIZE) and left.dtype == right.dtype == torch.uint8
    assert disparity.shape == occluded.shape == (16, *SIZE) and disparity.dtype == torch.float32
    assert 0 < disparity.min() and 0.8 * MOST < disparity.max() <= MOST
    assert 0.03 < occluded.float().mean() < 0.3


def test_same_seed_same_scene(stereo_scenes, photos):
    first, again, other = (stereo_scenes.scene(seed, *SIZE, MOST, photos) for seed in (5, 5, 6))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first.left, other.left)


def test_nothing_held_out_is_trained_on(stereo_scenes):
    trained = {name for names in stereo_scenes.TEXTURES.values() for name in names}
    assert stereo_scenes.held_out().keys() == {"coffee.png", "motorcycle_left.png", "flower.jpg"}
    assert not trained & stereo_scenes.held_out().keys() and "motorcycle_right.png" not in trained


@pytest.fixture(scope="module")
def train(stereo_scenes):
    pytest.importorskip("rich")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_mocha
    finally:
        sys.path.remove(str(EXAMPLES))
    return train_mocha


def test_step_and_resume(train, photos, tmp_path):
    args = Namespace(device="cpu", out=tmp_path, steps=10, minutes=1e6, rate=1e-3, average=0.9)
    args.max_disparity = 32
    training = train.Training(args)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    scenes = train.Scenes(photos, seed=1)
    for _ in range(2):
        found = training.advance(scenes.batch(1, 64, 96, 20))
        assert 0 < found["epe_0"] < found["loss"] and 0 < found["epe_4"] < found["loss"]
    still = {name for name, p in training.model.named_parameters() if torch.equal(p, before[name])}
    assert not still
    training.save()
    weights = MoChaStereo.from_checkpoint(tmp_path / "mocha_stereo.pt", max_disparity=32).state_dict()
    assert_close(weights, training.averaged.state_dict())
    again = train.Training(args)
    again.resume()
    assert again.step == 2 and again.seconds == training.seconds
    assert_close(again.model.state_dict(), training.model.state_dict())


def test_errors(train):
    truth = torch.tensor([[2.0, 5.0], [torch.inf, 10.0]])
    found = torch.tensor([[2.5, 7.0], [3.0, 15.0]])
    occluded = torch.tensor([[False, False], [False, True]])
    expected = {"epe": 2.5, "epe_seen": 1.25, "bad1": 2 / 3, "bad3": 1 / 3}
    assert train.errors(found, truth, occluded) == pytest.approx(expected, abs=1e-4)


def test_real_pair(train):
    left, right, disparity, _ = train.real_pair(256)
    known = disparity.isfinite()
    assert left.shape == right.shape == (3, *disparity.shape) and known.float().mean() > 0.8
    warped = pyops.reference.disparity_warp(right[None].float(), disparity[None, None].where(known, 0))[0]
    error = (warped - left).abs().mean(0)[known]
    assert error.median() < 6, "of 255"
