"""The example that trains CoTF (examples/train_cotf.py): a step, its checkpoint, and what it learns from."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from pyops.models import CoTF
from torch.testing import assert_close

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def train():
    for package in ("PIL", "rich", "matplotlib", "skimage", "sklearn"):
        pytest.importorskip(package)
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_cotf
    finally:
        sys.path.remove(str(EXAMPLES))
    return train_cotf


def test_step_and_resume(train, tmp_path):
    args = Namespace(device="cpu", out=tmp_path, steps=10, minutes=1e6, rate=1e-3, average=0.9)
    training = train.Training(args)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    scenes = train.Scenes(train.photographs(train.TRAINING), seed=1)
    for _ in range(2):  # before the first nothing has been learnt of the intervals, so they get no gradient
        loss, quality = training.advance(*scenes.batch(1, 64))
        assert loss == loss and quality > 0
    still = {name for name, p in training.model.named_parameters() if torch.equal(p, before[name])}
    assert all(name.startswith(("context.auxiliary", "sampler")) for name in still)
    training.save()
    assert_close(CoTF.from_checkpoint(tmp_path / "cotf.pt").state_dict(), training.averaged.state_dict())
    again = train.Training(args)
    again.resume()
    assert again.step == 2
    assert_close(again.model.state_dict(), training.model.state_dict())


def test_scenes(train):
    exposures, photos = train.Scenes(train.photographs(train.TRAINING), seed=0).batch(48, 48)
    assert exposures.shape == photos.shape == (48, 3, 48, 48)
    for images in (exposures, photos):
        assert 0 <= images.min() and images.max() <= 1
    assert_close(exposures * 255, (exposures * 255).round())
    dark = [e.mean() < p.mean() - 0.1 for e, p in zip(exposures, photos, strict=True)]
    bright = [e.mean() > p.mean() + 0.1 for e, p in zip(exposures, photos, strict=True)]
    assert any(dark) and any(bright) and sum(dark) + sum(bright) <= 24, (
        "some of each, and most as they should be"
    )


def test_nothing_held_out_is_trained_on(train):
    for package, names in train.HELD_OUT.items():
        assert not set(names) & set(train.TRAINING.get(package, []))
