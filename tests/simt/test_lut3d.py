"""What only small shared memory shows: every way in which the CUDA kernels divide a table."""

import shutil

import pytest
import torch

import pyops

from . import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

LIMITS = {
    232448: "whole table",
    20000: "one channel a slab",
    2700: "planes of a channel",
    600: "no shared memory",
}


@pytest.fixture
def emulator():
    library = build.load()
    yield library
    library.pyops_simt_set_shared_limit(max(LIMITS))


@pytest.mark.parametrize("limit", LIMITS, ids=LIMITS.get)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per image"])
@pytest.mark.parametrize("tetrahedral", [False, True], ids=["trilinear", "tetrahedral"])
@pytest.mark.parametrize("irregular", [False, True], ids=["uniform", "vertices"])
def test_every_division_of_the_table_agrees(emulator, limit, shared, tetrahedral, irregular):
    if irregular and limit < 2700:
        pytest.skip("the axes alone need more")
    emulator.pyops_simt_set_shared_limit(limit)
    size, batch = 9, 2
    lut = torch.rand(3, size, size, size) if shared else torch.rand(batch, 3, size, size, size)
    vertices = torch.linspace(0, 1, size).square().expand(3, -1).contiguous() if irregular else None
    image, grad = torch.rand(batch, 3, 40, 50), torch.randn(batch, 3, 40, 50)

    def run(ops):
        forward = ops.lut3d(image, lut, vertices, tetrahedral)
        need_vertices = vertices is not None and limit > 20000  # the sums of the axes need room too
        return forward, *ops.lut3d_backward(
            grad, image, lut, vertices, tetrahedral, True, True, need_vertices
        )

    first, second, expected = run(torch.ops.pyops_simt), run(torch.ops.pyops_simt), run(torch.ops.pyops)
    for one, other, right in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
        torch.testing.assert_close(one, right, atol=2e-6 * scale, rtol=0)


def test_a_gradient_that_is_not_finite_marks_the_cells_it_touches(emulator):
    image = torch.full((1, 3, 2, 4), 0.1)
    image[..., 1, :] = 0.9
    grad = torch.ones_like(image)
    grad[0, 0, 0, 0] = float("inf")
    lut = pyops.identity_lut(5)
    _, got, _ = torch.ops.pyops_simt.lut3d_backward(grad, image, lut, None, False, False, True, False)
    assert torch.isnan(got[0, :2, :2, :2]).all()
    assert torch.isfinite(got[1:]).all() and torch.isfinite(got[0, 3:, 3:, 3:]).all()
