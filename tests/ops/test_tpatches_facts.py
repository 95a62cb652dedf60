"""Temporal patches: what is true of these operators alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops
from pyops import reference


def draw(batch=2, frames=5, size=60, queries=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, frames, size, 3, generator=generator)
    noise = torch.randn(batch, frames, queries, 3, generator=generator) / 20
    return points, torch.randint(size, (batch, queries), generator=generator), noise


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def chain(points, start, k, noise=None):
    """One chain in a single sequence ``[T, N, 3]``, step by step."""
    query, rows = points[0, start], []
    for t, cloud in enumerate(points):
        x, y, z = (query - cloud).square().unbind(-1)
        ranked = sorted((d, i) for i, d in enumerate((x + y + z).tolist()))
        order = [i for _, i in ranked[:k]]
        rows.append((order, cloud[order[0]]))
        query = cloud[order[0]] + (0 if noise is None else noise[t])
    return torch.tensor([row[0] for row in rows]), torch.stack([row[1] for row in rows])


@pytest.mark.parametrize("grid", (0, 2), ids=("anywhere", "ties"))
def test_step_by_step(grid):
    points, start, noise = draw()
    points = (points * grid).round() / grid if grid else points
    for jitter in (None, noise):
        found = pyops.extract_tpatches(points, start, 6, noise=jitter)
        for b in range(2):
            for m in range(7):
                moves = None if jitter is None else jitter[b, :, m]
                indices, centers = chain(points[b], int(start[b, m]), 6, moves)
                assert torch.equal(found.indices[b, :, m], indices)
                assert torch.equal(found.centers[b, :, m], centers)


@pytest.mark.parametrize("size", (16, 1024, 1500))
def test_equals_the_definition_on_every_frame(size):
    """Clouds that move a little, and clouds that have nothing to do with each other, offset by hundreds of metres."""
    points, start, noise = draw(1, 6, size, 40)
    still = points[:, :1] + (points - points[:, :1]) / 50
    for cloud in (points, still, still + torch.tensor([100.0, 200, 30])):
        for k in (1, 16, 50):
            for reverse in (False, True):
                args = dict(noise=noise, reverse=reverse)
                assert_same(
                    pyops.extract_tpatches(cloud, start, k, **args),
                    reference.extract_tpatches(cloud, start, k, **args),
                )


def test_reverse_is_forward_on_time_reversed():
    points, start, noise = draw()
    found = pyops.extract_tpatches(points, start, 5, noise=noise, reverse=True)
    ahead = pyops.extract_tpatches(points.flip(1), start, 5, noise=noise.flip(1))
    assert_same(found, [t.flip(1) for t in ahead])


def test_both_directions_are_each_alone():
    points, start, noise = draw()
    both = pyops.bidirectional_tpatches(points, start[:, :3], start[:, 3:], 5, noise=noise, max_radius=0.7)
    ahead = pyops.extract_tpatches(points, start[:, :3], 5, noise=noise[:, :, :3], max_radius=0.7)
    back = pyops.extract_tpatches(
        points, start[:, 3:], 5, noise=noise[:, :, 3:], max_radius=0.7, reverse=True
    )
    assert_same(both, [torch.cat(pair, 2) for pair in zip(ahead, back, strict=True)])


def test_radius():
    points, start, _ = draw()
    free = pyops.extract_tpatches(points, start, 8)
    bounded = pyops.extract_tpatches(points, start, 8, max_radius=0.8)
    far = free.squared_distances > torch.tensor(0.8 * 0.8)
    far[..., 0] = False
    assert far.any() and not far.all()
    assert torch.equal(bounded.indices, free.indices[..., :1].where(far, free.indices))
    assert torch.equal(bounded.squared_distances, free.squared_distances.masked_fill(far, 0))
    assert torch.equal(bounded.centers, free.centers)


def test_radius_zero():
    points, start, _ = draw()
    found = pyops.extract_tpatches(points, start, 4, max_radius=0)
    assert torch.equal(found.indices, found.indices[..., :1].expand_as(found.indices))
    assert (found.squared_distances[..., 1:] == 0).all()
    assert (found.squared_distances[:, 1:, :, 0] > 0).all()


def test_one_frame_and_one_point():
    points, start, _ = draw(frames=1)
    for reverse in (False, True):
        found = pyops.extract_tpatches(points, start, 3, reverse=reverse)
        assert torch.equal(found.indices[:, 0, :, 0], start)
        assert (found.squared_distances[..., 0] == 0).all()
    found = pyops.extract_tpatches(points[:, :, :1].expand(-1, 3, -1, -1), torch.zeros_like(start), 3)
    assert (found.indices == torch.tensor([0, -1, -1])).all()
    assert (found.squared_distances == torch.tensor([0, math.inf, math.inf])).all()


@pytest.mark.parametrize("shape", ((0, 2, 5, 3), (2, 0, 5, 3), (2, 2, 0, 3), (2, 2, 5, 0)), ids=str)
def test_nothing(shape):
    batch, frames, size, queries = shape
    points = torch.randn(batch, frames, size, 3)
    start = torch.zeros(batch, queries if size else 0, dtype=torch.int64)
    found = pyops.extract_tpatches(points, start, 4)
    assert_same(found, reference.extract_tpatches(points, start, 4))
    assert found.indices.shape == (batch, frames, start.shape[1], 4)


def test_nan_is_no_neighbour():
    points, start, _ = draw()
    points[:, 1:, 10:40, 1] = math.nan
    points[:, 2, 45] = math.inf
    found = pyops.extract_tpatches(points, start, 40)
    assert not ((found.indices[:, 1:] >= 10) & (found.indices[:, 1:] < 40)).any()
    assert (found.indices[:, 1:] >= 0).sum(-1).tolist() == [[[30] * 7, [29] * 7, [30] * 7, [30] * 7]] * 2
    assert_same(found, reference.extract_tpatches(points, start, 40))


def test_a_chain_waits_where_there_is_nothing():
    points, start, noise = draw()
    lengths = torch.tensor([60, 0, 60, 60, 60])
    found = pyops.extract_tpatches(points, start, 5, lengths=lengths.expand(2, 5))
    assert (found.indices[:, 1] == -1).all() and (found.squared_distances[:, 1] == math.inf).all()
    assert torch.equal(found.centers[:, 1], found.centers[:, 0])
    others = pyops.extract_tpatches(points[:, [0, 2, 3, 4]], start, 5)
    assert torch.equal(found.indices[:, [0, 2, 3, 4]], others.indices)
    # ... and its gradient goes back to where it waits.
    leaves = [points.requires_grad_(), noise.requires_grad_()]
    grads = []
    for function in (pyops.extract_tpatches, reference.extract_tpatches):
        result = function(points, start, 5, noise=noise, lengths=lengths.expand(2, 5))
        total = result.squared_distances[:, 2:].sum() + result.centers.pow(3).sum()
        grads.append(torch.autograd.grad(total, leaves))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_chain_without_a_beginning():
    points, start, _ = draw()
    points[0, 0, start[0, 2]] = math.nan
    found = pyops.extract_tpatches(points, start, 5)
    assert (found.indices[0, :, 2] == -1).all() and found.centers[0, :, 2].isnan().all()
    assert_same(found, reference.extract_tpatches(points, start, 5))
    for wrong in (-1, 60, 2**40, -(2**62)):
        raw = torch.ops.pyops.extract_tpatches(
            points, torch.full_like(start, wrong), 5, 7, None, None, math.inf
        )
        assert (raw[0] == -1).all() and raw[2].isnan().all()


def test_lengths():
    points, start, _ = draw()
    start, lengths = start % 20, torch.tensor([20, 45])
    found = pyops.extract_tpatches(points, start, 30, lengths=lengths)
    for b in range(2):
        alone = pyops.extract_tpatches(points[b : b + 1, :, : lengths[b]], start[b : b + 1], 30)
        assert_same([t[b : b + 1] for t in found], alone)


def test_distances_are_those_to_the_points_of_the_indices():
    points, start, noise = draw()
    found = pyops.extract_tpatches(points, start, 5, noise=noise)
    query = torch.cat([points.gather(2, start[:, None, :, None].expand(-1, 5, -1, 3))[:, :1],
                       (found.centers + noise)[:, :-1]], 1)  # fmt: skip
    rows = pyops.gather_points(points.flatten(0, 1), found.indices.flatten(0, 1)).unflatten(0, (2, 5))
    assert_close(found.squared_distances, (rows - query[..., None, :]).square().sum(-1))


def test_operator_checks_memory_itself():
    points, start, noise = draw()
    extract = torch.ops.pyops.extract_tpatches
    for name, args in (
        ("points", (points[0], start, 3, 7, None, None, 1.0)),
        ("points", (points[..., :2], start, 3, 7, None, None, 1.0)),
        ("points", (points.long(), start, 3, 7, None, None, 1.0)),
        ("query_indices", (points, start[:1], 3, 7, None, None, 1.0)),
        ("query_indices", (points, start.int(), 3, 7, None, None, 1.0)),
        ("k must", (points, start, 0, 7, None, None, 1.0)),
        ("forward", (points, start, 3, 8, None, None, 1.0)),
        ("forward", (points, start, 3, -1, None, None, 1.0)),
        ("max_radius", (points, start, 3, 7, None, None, -1.0)),
        ("max_radius", (points, start, 3, 7, None, None, math.nan)),
        ("noise", (points, start, 3, 7, noise[:, 1:], None, 1.0)),
        ("noise", (points, start, 3, 7, noise.half(), None, 1.0)),
        ("lengths", (points, start, 3, 7, None, torch.ones(2, dtype=torch.int64), 1.0)),
        ("lengths", (points, start, 3, 7, None, torch.ones(2, 5), 1.0)),
    ):
        with pytest.raises(RuntimeError, match=name):
            extract(*args)
