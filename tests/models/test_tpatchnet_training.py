"""The example that trains TPatchNet on motions of stick figures (examples/train_tpatchnet.py, action_sequences.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pyops.models import TPatchNet

np = pytest.importorskip("numpy")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports a file of the examples by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return pytest.importorskip


@pytest.fixture
def train(example):
    for package in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(package)
    return example("train_tpatchnet")


@pytest.mark.parametrize("features", (0, 3))
def test_runs_from_end_to_end(train, monkeypatch, tmp_path, capsys, features):
    sizes = (
        "--places " * bool(features) + "--steps 2 --motions 1 --batch 4 --frames 6 --points 64 --held-out 1"
    )
    monkeypatch.setattr(sys, "argv", ["train_tpatchnet.py", *sizes.split(), "--out", str(tmp_path)])
    train.main()
    assert (tmp_path / "tpatches.png").stat().st_size > 10_000
    model = TPatchNet(len(train.NAMES), features, levels=train.LEVELS, smoothing=6)
    model.load_state_dict(torch.load(tmp_path / "tpatchnet.pt", weights_only=True))
    printed = capsys.readouterr().out
    for words in (
        "t-patches: ",
        "patches of single frames: ",
        "temporal: step 2",
        "frame: step 2",
        "straighten",
    ):
        assert words in printed


def test_same_seed_same_motion(example):
    actions = example("action_sequences")
    first, again, other = (
        actions.sequence(np.random.default_rng(seed), "walk", frames=4, points=50) for seed in (1, 1, 2)
    )
    assert first.shape == (4, 50, 3) and first.dtype == np.float32
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    "there, back", (("raise arms", "lower arms"), ("squat", "stand up"), ("bow", "straighten"))
)
def test_the_reverse_is_another_action(example, there, back):
    """The same body in the reverse motion has the same poses; points and noise are drawn anew."""
    actions = example("action_sequences")
    forth, reverse = (
        actions.sequence(np.random.default_rng(3), action, frames=5, points=4000, noise=0)
        for action in (there, back)
    )
    extent = [[np.quantile(frame, (0.1, 0.9), axis=0) for frame in clip] for clip in (forth, reverse[::-1])]
    assert not np.allclose(extent[0][0], extent[0][-1], atol=0.08), "it moves"
    difference = np.subtract(*extent)
    assert np.ptp(difference, axis=0).max() < 0.08, "but for where the first frame is, which is the origin"


@pytest.mark.parametrize("number", range(12))
def test_bodies_stand_where_people_do(example, number):
    actions = example("action_sequences")
    assert len(actions.ACTIONS) == 12
    clip = actions.sequence(np.random.default_rng(number), actions.ACTIONS[number])
    assert clip.shape == (16, 256, 3) and np.isfinite(clip).all()
    low, high = clip.min((0, 1)), clip.max((0, 1))
    assert (low > (-1.2, -1.2, -1.4)).all() and (high < (1.2, 1.2, 1.8)).all()
    assert np.abs(clip[0].mean(0)[:2]).max() < 1e-5
