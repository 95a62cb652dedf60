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
    batches = train.Batches(train.Scenes(photos, seed=1), count=1, seed=1)
    found = training.advance(batches.next(train.Stage(1, (64, 96), (8, 20), 0)))
    assert found.keys() == {"loss", "volume", "match", "epe_0"} and 0 < found["epe_0"] < found["loss"]
    training.step = args.steps - 2  # where the updates take part
    for _ in range(2):
        found = training.advance(batches.next(train.Stage(1, (64, 96), (8, 20), 0)))
    updates = {f"epe_{index}" for index in range(1 + train.STAGES[-1].iters)}
    assert len(updates) > 1 and found.keys() == {"loss", "volume", "match", *updates}
    still = {name for name, p in training.model.named_parameters() if torch.equal(p, before[name])}
    assert not still
    training.save()
    weights = MoChaStereo.from_checkpoint(tmp_path / "mocha_stereo.pt", max_disparity=32).state_dict()
    assert_close(weights, training.averaged.state_dict())
    again = train.Training(args)
    again.resume()
    assert again.step == args.steps and again.seconds == training.seconds
    assert_close(again.model.state_dict(), training.model.state_dict())


def test_batches_come_again_upside_down(train, photos):
    batches = train.Batches(train.Scenes(photos, seed=1), count=2, seed=1, times=2)
    stage = train.Stage(1, (32, 64), (8, 20), 0)
    found = [batches.next(stage).left.float() for _ in range(24)]
    assert all(left.shape == (2, 3, 32, 64) for left in found)
    upright = {left.mean().item() for left in found}
    assert 6 <= len({round(mean, 3) for mean in upright}) <= 18
    assert batches.next(train.Stage(1, (32, 96), (8, 20), 0)).left.shape == (2, 3, 32, 96)


def test_losses_are_least_for_the_truth(train):
    """0 would need a sharper distribution than the two steps next to the truth allow."""
    disparity, occluded = torch.full((1, 16, 32), 8.0), torch.zeros(1, 16, 32, dtype=torch.bool)
    costs = torch.zeros(1, 1, 6, 4, 8)
    costs[:, :, 2] = 20
    assert train.volume_loss(costs, disparity) < 1e-3 < 15 < train.volume_loss(costs, disparity + 4)
    right = torch.randn(1, 24, 4, 10)
    left, right = right[..., :8], right[..., 2:]  # what is at x on the left is at x - 2 on the right
    assert train.match_loss(left, right, disparity, occluded) < 0.5
    assert train.match_loss(left, right, disparity + 4, occluded) > 2


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
