"""TPatchNet and its loss: shapes, operators, options, copies, what its flags change, that it can learn."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from pyops.models import ActionLoss, TPatchNet
from pyops.models.tpatchnet import PUBLISHED, Level
from torch.testing import assert_close

import pyops
from pyops import reference

LEVELS = (Level(12, 6, (8, 16)), Level(6, 4, (16,)), Level(None, 3, (32,)))


def small(**options) -> TPatchNet:
    torch.manual_seed(1)
    return TPatchNet(5, **{"levels": LEVELS, "smoothing": 7, **options})


def clouds(*shape: int) -> torch.Tensor:
    """Points that wander."""
    torch.manual_seed(2)
    steps = torch.randn(*shape, 3) * 0.02
    steps[:, 0] = torch.randn(shape[0], shape[2], 3)
    return steps.cumsum(1)


@pytest.mark.parametrize("temporal", ("convolution", "attention"))
@pytest.mark.parametrize("patches", ("temporal", "frame"))
@pytest.mark.parametrize("features", (0, 2))
def test_log_probabilities_for_every_frame(temporal, patches, features):
    model, points = small(temporal=temporal, patches=patches, features=features).eval(), clouds(2, 9, 40)
    carried = torch.rand(2, 9, 40, features) if features else None
    with torch.inference_mode():
        found = model(points, carried)
    assert found.shape == (2, 9, 5)
    assert_close(found.exp().sum(-1), torch.ones(2, 9))


@pytest.mark.parametrize("patches", ("temporal", "frame"))
def test_equals_the_definition(patches):
    points = clouds(2, 6, 30)
    ours, plain = (small(ops=ops, patches=patches, max_radius=0.9).eval() for ops in (pyops, reference))
    assert_close(ours(points), plain(points))


@pytest.mark.parametrize("shape", ((1, 1, 1), (1, 3, 2), (2, 1, 20), (1, 70, 5)))
def test_any_number_of_frames_and_points(shape):
    assert small().eval()(clouds(*shape)).isfinite().all()


def test_order_of_points_does_not_matter():
    """Where nothing is a tie; the first query is the one point that has to stay."""
    points = clouds(1, 5, 40)
    mixed = torch.cat([points[:, :, :1], points[:, :, 1:][:, :, torch.randperm(39)]], 2)
    model = small().eval()
    assert_close(model(mixed), model(points), rtol=0, atol=1e-5)


def test_patches_follow_what_moves():
    """In the first half chains start at the first frame, in the second at the last; each is seen from its start."""
    points = clouds(2, 8, 50)
    found, origin = small().eval().patches_of(points, LEVELS[0])
    assert found.indices.shape == (2, 8, 12, 6) and origin.shape == (2, 8, 12, 3)
    assert_close(origin[:, 3, :6], found.centers[:, 0, :6])
    assert_close(origin[:, 3, 6:], found.centers[:, -1, 6:])
    alone, centers = small(patches="frame").eval().patches_of(points, LEVELS[0])
    assert_close(centers, alone.centers)


def test_jitter_is_for_training_alone():
    points, model = clouds(1, 6, 60), small(jitter=0.3)
    same = [model.eval().patches_of(points, LEVELS[0])[0].indices for _ in range(2)]
    other = [model.train().patches_of(points, LEVELS[0])[0].indices for _ in range(2)]
    assert torch.equal(*same) and not torch.equal(*other)


def test_shifted_features_are_another_network():
    points = clouds(1, 6, 30)
    assert not torch.allclose(small().eval()(points), small(shifted_features=True).eval()(points))
    assert_close(small().eval()(points[:, :1]), small(shifted_features=True).eval()(points[:, :1]))


def test_published_size():
    count = sum(p.numel() for p in TPatchNet(10, levels=PUBLISHED, smoothing=1).parameters())
    assert 10e6 < count < 11e6


def test_it_learns_two_motions():
    """One cloud drifts up, one down, in another order of points in every frame."""
    torch.manual_seed(0)
    rest = torch.rand(12, 1, 40, 3)
    way = torch.linspace(0, 0.4, 6).view(1, 6, 1) * torch.tensor([1.0, -1.0]).repeat(6).view(12, 1, 1)
    points = rest.expand(12, 6, 40, 3).clone()
    points[..., 2] += way
    points = torch.stack([torch.stack([f[torch.randperm(40)] for f in clip]) for clip in points])
    truth = torch.tensor([0, 1]).repeat(6)[:, None].expand(12, 6)
    model, loss = small(dropout=0.0, jitter=0.0), ActionLoss()
    optimizer, values = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(model(points), truth)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("ops", (pyops, reference))
def test_copies_keep_their_operators(ops):
    model = small(ops=ops)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.ops is ops
        assert_close(copied.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"classes": 0}, ValueError, "classes must be at least 1, got 0"),
        ({"classes": 2.0}, TypeError, "classes must be an int, got float"),
        ({"classes": 2, "smoothing": 0}, ValueError, "smoothing must be at least 1"),
        ({"classes": 2, "temporal": "lstm"}, ValueError, "'convolution' or 'attention', got 'lstm'"),
        ({"classes": 2, "patches": "both"}, ValueError, "'temporal' or 'frame', got 'both'"),
    ],
)
def test_wrong_options(options, error, words):
    with pytest.raises(error, match=words):
        TPatchNet(**options)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([1.0],), TypeError, r"points must be a torch\.Tensor"),
        ((torch.zeros(1, 2, 3, 3, dtype=torch.int64),), TypeError, "floating point"),
        ((torch.zeros(1, 2, 3, 2),), ValueError, r"points must be \[B, T, N, 3\]"),
        ((torch.zeros(1, 0, 3, 3),), ValueError, "none of them 0"),
        ((torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 1)), ValueError, "or None where there are none"),
    ],
)
def test_wrong_inputs(arguments, error, words):
    with pytest.raises(error, match=words):
        small()(*arguments)


def test_loss_of_what_is_right_and_of_what_is_even():
    truth = torch.tensor([[0, 0], [2, 2]])
    right = torch.nn.functional.one_hot(truth, 3).float().clamp(1e-6).log()
    even = torch.full((2, 2, 3), 1 / 3).log()
    assert ActionLoss()(right, truth) < 1e-4
    assert_close(ActionLoss(0.5)(even, truth).exp(), torch.tensor(3**1.5))
    with pytest.raises(ValueError, match=r"found must be \[B, T, classes\]"):
        ActionLoss()(even, truth[:1])
