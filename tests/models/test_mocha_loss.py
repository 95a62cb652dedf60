"""The training loss of MoChaStereo against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from pyops.models import StereoLoss


def disparities(count: int) -> list[torch.Tensor]:
    return list(torch.rand(count, 2, 1, 5, 7, dtype=torch.float64) * 20)


def test_formula():
    truth, first, *updates = disparities(5)
    error = (first - truth).abs()
    expected = torch.where(error < 1, error**2 / 2, error - 0.5).mean()
    expected += 0.81 * (updates[0] - truth).abs().mean() + 0.9 * (updates[1] - truth).abs().mean()
    expected += (updates[2] - truth).abs().mean()
    torch.testing.assert_close(StereoLoss(30)(first, updates, truth), expected)


@pytest.mark.parametrize("unknown", (0.0, -1.0, 30.0, 1e9, math.inf, -math.inf, math.nan))
def test_pixels_without_truth_have_no_say(unknown):
    truth, first, update = disparities(3)
    known = torch.rand(truth.shape) > 0.3
    expected = StereoLoss(30)(first[known][None], [update[known][None]], truth[known][None])
    first.requires_grad_()
    loss = StereoLoss(30)(first, [update], truth.where(known, unknown))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert torch.equal(first.grad != 0, known)


def test_nothing_known():
    first, update = (d.requires_grad_() for d in disparities(2))
    loss = StereoLoss()(first, [update], torch.full_like(first, math.nan))
    loss.backward()
    assert loss.item() == 0 and not first.grad.any() and not update.grad.any()


def test_unlike_shapes():
    truth, first, update = disparities(3)
    with pytest.raises(ValueError, match=r"\[2, 1, 5, 7\], got \[2, 1, 5, 6\]"):
        StereoLoss()(first, [update[..., 1:]], truth)
