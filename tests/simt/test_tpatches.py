"""What is special to the CUDA kernel: warps that share a block, tiles of 2048 points, lists beyond 32, guesses
that are too small, the order of threads."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def draw(batch, frames, size, queries, dtype=torch.float32, grid=0):
    generator = torch.Generator().manual_seed(size)
    points = torch.randn(batch, frames, size, 3, generator=generator)
    noise = torch.randn(batch, frames, queries, 3, generator=generator) / 10
    start = torch.randint(size, (batch, queries), generator=generator)
    lengths = torch.randint(size // 2, size + 1, (batch, frames), generator=generator)
    points = (points * grid).round() / grid if grid else points
    return points.to(dtype), start, noise.to(dtype), lengths


def assert_same(points, start, k, forward, noise, lengths, radius=math.inf):
    args = points, start, k, forward, noise, lengths, radius
    found = torch.ops.pyops_simt.extract_tpatches(*args)
    for ours, cpu in zip(found, torch.ops.pyops.extract_tpatches(*args), strict=True):
        assert torch.equal(ours.isnan(), cpu.isnan())
        assert torch.equal(ours.nan_to_num(), cpu.nan_to_num())
    return found


@pytest.mark.parametrize(
    "size, k",
    ((50, 16), (1, 1), (31, 32), (33, 33), (70, 65), (20, 70), (2049, 5), (4500, 40)),
)
def test_divisions_of_the_work(emulator, size, k):
    points, start, noise, lengths = draw(2, 3, size, 11)
    for forward in (0, 6, 8, 11):
        assert_same(points, start, k, forward, None, None)
    assert_same(points, start, k, 6, noise, lengths, 0.6)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_ties(emulator, dtype):
    points, start, _, lengths = draw(1, 4, 300, 9, dtype, grid=2)
    assert_same(points, start, 16, 4, None, lengths)


def test_a_guess_that_is_too_small(emulator):
    """Clouds that grow, so that what bounds the last patch holds too few points of the next, and clouds that vanish."""
    points, start, noise, _ = draw(1, 6, 100, 9)
    points = points * torch.tensor([1.0, 9, 0, 80, math.nan, 1])[:, None, None]
    assert_same(points, start, 16, 9, None, None)
    assert_same(points, start, 16, 0, noise, None)


def test_order_of_threads(emulator):
    points, start, noise, lengths = draw(1, 3, 2100, 10)
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert_same(points, start, 40, 5, noise, lengths)
        assert_same(points, start, 9, 5, noise, lengths)


def test_strides(emulator):
    points, start, noise, _ = draw(2, 3, 40, 9)
    plain = assert_same(points, start, 5, 4, noise, None)
    points, noise = (t.transpose(1, 3).contiguous().transpose(1, 3) for t in (points, noise))
    for ours, expected in zip(
        assert_same(points, start.mT.contiguous().mT, 5, 4, noise, None), plain, strict=True
    ):
        assert torch.equal(ours, expected)
