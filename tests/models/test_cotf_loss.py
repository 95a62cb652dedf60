"""The training loss of CoTF against scikit-image and against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pyops.models import CoTFLoss
from pyops.models.cotf_loss import ssim


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that is smooth with some noise, and another like it."""
    smooth = F.interpolate(torch.rand(*shape[:2], 4, 5, dtype=dtype), shape[2:], mode="bicubic").clamp(0, 1)
    return tuple(
        (smooth * a + b * torch.rand(shape, dtype=dtype)).clamp(0, 1) for a, b in ((1, 0.05), (0.7, 0.2))
    )


@pytest.mark.parametrize("shape", ((1, 3, 40, 57), (2, 3, 64, 12), (3, 1, 11, 11)))
def test_ssim_is_that_of_scikit_image(shape):
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair(*shape)
    found = ssim(x, y)
    assert found.shape == shape[:1]
    for a, b, value in zip(x, y, found, strict=True):
        expected, everywhere = metrics.structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            full=True,
        )
        assert value.item() == pytest.approx(expected, abs=1e-12)
        assert value.item() == pytest.approx(everywhere[:, 5:-5, 5:-5].mean(), abs=1e-12)


def test_ssim_of_an_image_with_itself_is_one():
    x, y = pair(2, 3, 20, 30, dtype=torch.float32)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    assert (ssim(x, y) < 0.95).all()


@pytest.mark.parametrize("other", ((1, 3, 10, 20), (1, 3, 20, 10), (3, 20, 20)))
def test_ssim_refuses_what_has_no_window(other):
    x = torch.rand(other)
    with pytest.raises(ValueError, match=r"x and y must be \[B, C, H, W\]"):
        ssim(x, x)


def test_ssim_refuses_unlike_shapes():
    with pytest.raises(ValueError, match=r"got \[1, 3, 20, 20\] and \[2, 3, 20, 20\]"):
        ssim(torch.rand(1, 3, 20, 20), torch.rand(2, 3, 20, 20))


def test_the_three_terms():
    x, y = pair(2, 3, 24, 24)
    plain = (x - y).abs().mean() + 0.5 * (1 - ssim(x, y).mean())
    torch.testing.assert_close(CoTFLoss()(x, y), plain)
    maps = (x[:, :1].exp() - y[:, :1].exp()).abs().mean(), (x**2 - y**2).abs().mean()
    torch.testing.assert_close(CoTFLoss(lambda t: t**2)(x, y), plain + 0.1 * maps[1])
    several = CoTFLoss(lambda t: [t[:, :1].exp(), t**2])
    torch.testing.assert_close(several(x, y), plain + 0.1 * (maps[0] + maps[1]) / 2)


def test_a_feature_network_moves_with_the_loss():
    network = torch.nn.Conv2d(3, 4, 3)
    loss = CoTFLoss(network).double()
    assert network.weight.dtype == torch.float64
    x, y = pair(1, 3, 16, 16)
    expected = CoTFLoss()(x, y) + 0.1 * (network(x) - network(y)).abs().mean()
    torch.testing.assert_close(loss(x, y), expected)


def test_gradient():
    x, y = pair(1, 2, 12, 13)
    assert torch.autograd.gradcheck(CoTFLoss(torch.sin), (x.requires_grad_(), y))
