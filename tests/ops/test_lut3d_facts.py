"""What is true of 3D lookup tables alone: values known beforehand, symmetries, and other people's results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import pyops
from pyops import reference

INTERPOLATIONS = ("trilinear", "tetrahedral")
both = pytest.mark.parametrize("interpolation", INTERPOLATIONS)


def rand(*shape, low=0.0, high=1.0):
    return torch.rand(shape) * (high - low) + low


def run(image, lut, interpolation="trilinear", vertices=None):
    return pyops.lut3d(image, lut, vertices=vertices, interpolation=interpolation)


# ---- tables whose effect is known ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("size", (2, 3, 17, 33, 129))
def test_identity_table_returns_the_image(interpolation, size):
    for image in (rand(2, 3, 61, 47), rand(1, 3, 2, 3)):  # the packed table, and the table as it is
        assert_close(run(image, pyops.identity_lut(size), interpolation), image, rtol=0, atol=3e-7)


@both
def test_constant_table_returns_the_constant(interpolation):
    colour = torch.tensor([0.25, -1.5, 3.0])
    lut = colour.view(3, 1, 1, 1).expand(3, 9, 9, 9)
    out = run(rand(1, 3, 30, 31, low=-1, high=2), lut, interpolation)
    assert_close(out, colour.view(1, 3, 1, 1).expand_as(out), rtol=0, atol=5e-7)


@both
def test_linear_in_the_table(interpolation):
    image, first, second = rand(2, 3, 20, 21), rand(3, 7, 7, 7), rand(3, 7, 7, 7)
    mixed = run(image, 2 * first - 3 * second, interpolation)
    apart = 2 * run(image, first, interpolation) - 3 * run(image, second, interpolation)
    assert_close(mixed, apart, rtol=0, atol=3e-6)


@both
@pytest.mark.parametrize("axes", (False, True))
def test_exact_on_affine_tables(interpolation, axes):
    matrix, offset, size = torch.randn(3, 3), torch.randn(3), 9
    lattice = torch.linspace(0, 1, size).expand(3, size)
    if axes:
        lattice = F.pad((rand(3, size - 1) + 0.2).cumsum(-1), (1, 0))
        lattice = lattice / lattice[:, -1:]
    blue, green, red = torch.meshgrid(*lattice.flip(0), indexing="ij")
    points = torch.stack([red, green, blue])
    lut = torch.einsum("ij,jxyz->ixyz", matrix, points) + offset.view(3, 1, 1, 1)
    image = rand(1, 3, 40, 41)
    expected = torch.einsum("ij,bjxy->bixy", matrix, image) + offset.view(1, 3, 1, 1)
    assert_close(run(image, lut, interpolation, lattice if axes else None), expected, rtol=0, atol=5e-6)


def test_tetrahedral_needs_only_the_diagonal_for_greys():
    lut = torch.full((3, 5, 5, 5), float("inf"))
    ramp = rand(5)
    for i in range(5):
        lut[:, i, i, i] = ramp[i]
    grey = rand(1, 1, 9, 9).expand(1, 3, 9, 9)
    weights = run(grey, torch.where(lut.isinf(), 1e6, lut), "tetrahedral")
    assert_close(
        weights,
        F.grid_sample(
            ramp.view(1, 1, 1, 5),
            torch.stack([grey[0, 0] * 2 - 1, 0 * grey[0, 0]], -1)[None],
            align_corners=True,
        ).expand(1, 3, 9, 9),
        rtol=0,
        atol=1e-6,
    )


# ---- symmetries ----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("order", ((1, 2, 0), (0, 2, 1), (2, 1, 0)))
def test_channels_may_trade_places(interpolation, order):
    image, lut = rand(1, 3, 15, 16), rand(3, 6, 6, 6)
    # axes of the table are blue, green, red: channel c of the image runs along axis 3 - c
    swapped = lut.permute(0, *(3 - order[2 - k] for k in range(3)))
    assert_close(
        run(image[:, order], swapped, interpolation), run(image, lut, interpolation), rtol=0, atol=1e-6
    )


@both
def test_out_of_range_is_clamped(interpolation):
    image, lut = rand(1, 3, 30, 30, low=-2, high=3), rand(3, 5, 5, 5)
    image[0, :, 0, 0] = torch.tensor([float("inf"), -float("inf"), 1e30])
    assert torch.equal(run(image, lut, interpolation), run(image.clamp(0, 1), lut, interpolation))


@both
def test_nan_has_no_gradient_and_makes_no_other(interpolation):
    image = rand(1, 3, 9, 9)
    image[0, 1, 4, 4] = float("nan")
    image.requires_grad_()
    out = run(image, rand(3, 5, 5, 5), interpolation)
    assert bool(out[0, :, 4, 4].isnan().all()) and int(out.isnan().sum()) == 3
    (grad,) = torch.autograd.grad(out.sum(), image)
    assert grad[0, 1, 4, 4] == 0
    grad[..., 4, 4] = 0
    assert bool(grad.isfinite().all())


@both
def test_a_table_for_each_image(interpolation):
    image, luts = rand(3, 3, 19, 23), rand(3, 3, 5, 5, 5)
    out = run(image, luts, interpolation)
    for i in range(3):
        assert_close(out[i], run(image[i], luts[i], interpolation), rtol=0, atol=1e-6)
    assert_close(
        run(image, luts[:1].expand(3, -1, -1, -1, -1), interpolation), run(image, luts[0], interpolation)
    )


# ---- other implementations -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", (2, 9, 33))
def test_equals_grid_sample(size):
    image, lut = rand(2, 3, 37, 29, low=-0.2, high=1.2), rand(2, 3, size, size, size)
    grid = (2 * image.permute(0, 2, 3, 1) - 1)[:, None]
    expected = F.grid_sample(lut.double(), grid.double(), padding_mode="border", align_corners=True)[:, :, 0]
    assert_close(run(image, lut).double(), expected, rtol=0, atol=1e-6 * size)


@both
def test_equals_opencolorio(interpolation):
    ocio = pytest.importorskip("PyOpenColorIO")
    size, image = 17, rand(3, 64, 61, low=-0.1, high=1.1)
    lut = rand(3, size, size, size)
    transform = ocio.Lut3DTransform(gridSize=size)
    transform.setData(lut.permute(3, 2, 1, 0).contiguous().numpy().ravel())  # red, green, blue, channel
    kind = {"trilinear": ocio.INTERP_LINEAR, "tetrahedral": ocio.INTERP_TETRAHEDRAL}[interpolation]
    transform.setInterpolation(kind)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    ocio.Config.CreateRaw().getProcessor(transform).getDefaultCPUProcessor().applyRGB(pixels)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    assert_close(run(image, lut, interpolation), expected, rtol=0, atol=1e-5)


# ---- integers and mixed precision ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("dtype, levels", ((torch.uint8, 255), (torch.uint16, 65535)))
@pytest.mark.parametrize("size", (2, 17))
def test_integers_are_the_float_path_rounded(interpolation, dtype, levels, size):
    """Every level there is; few pixels and many for the table; results beyond [0, 1] saturate."""
    lut = rand(3, size, size, size, low=-0.3, high=1.3)
    # A coordinate times N - 1 is rounded to float32, on three axes along which the table may change by 1.6.
    rounding = 1e-6 + 3 * 1.6 * (size - 1) * 2**-24
    values = torch.arange(levels + 1)
    image = torch.stack([values, values.roll(77), values.flip(0)]).view(1, 3, 16, -1)
    for pixels in (image, image[..., -1:]):
        real = run(pixels.double() / levels, lut.double(), interpolation)
        scaled = real.clamp(0, 1) * levels
        result = run(pixels.to(dtype), lut, interpolation).double()
        sure = (scaled.frac() - 0.5).abs() > levels * rounding
        assert torch.equal(result[sure], scaled.round()[sure])
        assert float((result - scaled).abs().max()) < 0.5 + levels * rounding


@pytest.mark.parametrize("dtype", (torch.uint8, torch.uint16))
def test_integers_round_ties_to_even_and_nan_to_zero(dtype):
    levels = 255 if dtype == torch.uint8 else 65535
    image = torch.zeros(1, 3, 4, 4).to(dtype)
    for value, expected in ((0.5, 0), (1.5, 2), (2.5, 2), (levels - 0.5, levels - 1), (float("nan"), 0)):
        lut = torch.full((3, 2, 2, 2), value / levels, dtype=torch.float64)
        assert set(run(image, lut).flatten().tolist()) == {expected}, value


@both
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_images_compute_in_float32(interpolation, dtype):
    image, lut = rand(1, 3, 33, 35).to(dtype), rand(3, 9, 9, 9)
    assert torch.equal(run(image, lut, interpolation), run(image.float(), lut, interpolation).to(dtype))
    same = run(image, lut.to(dtype), interpolation)
    assert torch.equal(same, run(image.float(), lut.to(dtype).float(), interpolation).to(dtype))


def test_float64_anywhere_makes_all_float64():
    image, lut = rand(1, 3, 33, 35), rand(3, 9, 9, 9)
    assert torch.equal(run(image, lut.double()), run(image.double(), lut.double()).float())


# ---- non-uniform axes ----------------------------------------------------------------------------------


@both
def test_even_vertices_are_no_vertices(interpolation):
    image, lut = rand(2, 3, 41, 40, low=-0.1, high=1.1), rand(3, 9, 9, 9)
    vertices = torch.linspace(0, 1, 9).expand(3, 9)
    assert_close(run(image, lut, interpolation, vertices), run(image, lut, interpolation), rtol=0, atol=2e-6)


@both
@pytest.mark.parametrize("pixels", (4, 60))
def test_many_vertices_in_one_bucket(interpolation, pixels):
    """Cells a ten-thousandth wide, in the middle and at both ends."""
    tight = 1e-4 * torch.arange(1, 12, dtype=torch.float64)
    axis = torch.cat([torch.zeros(1), tight, 0.5 + tight, 1 - tight.flip(0), torch.ones(1)]).double()
    size = len(axis)
    vertices, lut = axis.expand(3, size).contiguous(), torch.rand(3, size, size, size, dtype=torch.float64)
    spread = torch.rand(1, 3, pixels, pixels, dtype=torch.float64) * 1.5e-3
    for start in (0.0, 0.4999, 0.99855):
        image = (spread + start).clamp(max=1)
        expected = reference.lut3d(image, lut, vertices=vertices, interpolation=interpolation)
        assert_close(run(image, lut, interpolation, vertices), expected, rtol=0, atol=1e-9)
        single = run(image.float(), lut.float(), interpolation, vertices.float())
        same_inputs = [t.float().double() for t in (image, lut, vertices)]
        exact = reference.lut3d(*same_inputs[:2], vertices=same_inputs[2], interpolation=interpolation)
        assert_close(single.double(), exact, rtol=0, atol=5e-3 if start else 1e-5)


@both
@pytest.mark.parametrize("size", (2, 7, 129))
def test_pixels_on_vertices_get_their_value(interpolation, size):
    axis = F.pad((rand(3, size - 1) + 0.5).double().cumsum(-1), (1, 0))
    axis = (axis / axis[:, -1:]).float()
    lut = rand(3, size, size, size)
    place = torch.randint(0, size, (3, 500))
    place[:, :2] = torch.tensor([0, size - 1])
    image = axis.gather(1, place).view(1, 3, 20, 25)
    expected = lut[:, place[2], place[1], place[0]].view(1, 3, 20, 25)
    assert_close(run(image, lut, interpolation, axis), expected, rtol=0, atol=1e-6)


# ---- large and special memory --------------------------------------------------------------------------


@both
def test_large_images_are_many_small_ones(interpolation):
    """From some size on, results go past the caches; that must not show."""
    image, lut = rand(1, 3, 2050, 2051), rand(3, 9, 9, 9)
    out = run(image, lut, interpolation)
    for rows in (slice(0, 300), slice(1000, 1003), slice(1750, 2050)):
        assert torch.equal(out[:, :, rows], run(image[:, :, rows].contiguous(), lut, interpolation))


@both
def test_gradient_of_a_flat_image_is_summed_exactly(interpolation):
    """Half a million equal addends: sums in float32 would be off by far more."""
    count, lut = 500_000, rand(3, 9, 9, 9).requires_grad_()
    image = torch.tensor([0.3, 0.55, 0.8]).view(1, 3, 1, 1).expand(1, 3, 500, 1000)
    (grad,) = torch.autograd.grad(run(image, lut, interpolation), lut, torch.full((1, 3, 500, 1000), 0.1))
    one = reference.lut3d(image[..., :1, :1].double(), lut.double(), interpolation=interpolation)
    (expected,) = torch.autograd.grad(one, lut, torch.full((1, 3, 1, 1), 0.1, dtype=torch.float32).double())
    assert_close(grad, expected.to(grad) * count, rtol=3e-6, atol=0.02)
    assert_close(float(grad.double().sum()), 3 * 0.1 * count, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.uint8, torch.uint16))
def test_memory_format_is_kept(dtype):
    image, lut = (rand(2, 3, 21, 22) * 200).to(dtype), rand(3, 5, 5, 5)
    last = image.contiguous(memory_format=torch.channels_last)
    out = run(last, lut)
    assert out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous()
    assert torch.equal(out, run(image, lut)) and run(image, lut).is_contiguous()
    assert run(image[0], lut).shape == image[0].shape and torch.equal(run(image[0], lut), run(image, lut)[0])
    if dtype.is_floating_point:
        leaf = last.requires_grad_()
        assert run(leaf, lut).sum().backward() is None
        assert leaf.grad.is_contiguous(memory_format=torch.channels_last)


# ---- the tables' own functions -------------------------------------------------------------------------


def test_fuse_luts():
    weights, basis = torch.randn(4, 3, requires_grad=True), torch.randn(3, 3, 5, 5, 5, requires_grad=True)
    expected = torch.einsum("bm,mcijk->bcijk", weights, basis)
    assert_close(pyops.fuse_luts(weights, basis), expected, rtol=0, atol=1e-5)
    small = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2), (2, 3, 2, 2, 2))
    ]
    assert torch.autograd.gradcheck(pyops.fuse_luts, small)
    for change, error, words in (
        ((weights[0], basis), ValueError, "weights"),
        ((weights, basis[:2]), ValueError, "basis"),
        ((weights, basis.double()), TypeError, "basis"),
        ((weights.long(), basis), TypeError, "weights"),
        ((weights, basis.to("meta")), ValueError, "basis"),
    ):
        with pytest.raises(error, match=words):
            pyops.fuse_luts(*change)


def test_identity_lut():
    lut = pyops.identity_lut(5, dtype=torch.float64)
    assert lut.dtype == torch.float64 and lut.shape == (3, 5, 5, 5)
    for channel, axis in enumerate((-1, -2, -3)):
        ramp = lut[channel].movedim(axis, -1)
        assert torch.equal(ramp, torch.linspace(0, 1, 5, dtype=torch.float64).expand(5, 5, 5))
    for size in (1, 130):
        with pytest.raises(ValueError, match=f"size must be from 2 to 129, got {size}"):
            pyops.identity_lut(size)
    with pytest.raises(TypeError, match="dtype"):
        pyops.identity_lut(5, dtype=torch.int32)


@pytest.mark.parametrize("size", (2, 11, 33))
def test_regularisers(size):
    identity = pyops.identity_lut(size, dtype=torch.float64)
    step = 1 / (size - 1)
    # one channel of three rises along each of three axes, by a step
    assert_close(pyops.lut_smoothness(identity).item(), step**2)
    assert pyops.lut_monotonicity(identity).item() == 0
    assert_close(pyops.lut_monotonicity(-identity).item(), step)
    assert pyops.lut_smoothness(torch.ones(2, 3, 4, 4, 4)).item() == 0


@pytest.mark.parametrize("function", (pyops.lut_smoothness, pyops.lut_monotonicity))
def test_gradients_and_errors_of_regularisers(function):
    lut = torch.rand(2, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, [lut])
    with pytest.raises(ValueError, match=r"lut must be .* got \[3, 4, 4, 3\]"):
        function(torch.rand(3, 4, 4, 3))
    with pytest.raises(TypeError, match="lut"):
        function(torch.zeros(3, 4, 4, 4, dtype=torch.int32))
