"""What is special to the CUDA kernels: regions of 64 x 32 pixels with their rings, windows of every size, the order of
threads, and every element type and layout."""

import math
import shutil

import pytest
import torch

from pyops import ModulationWeights, reference

from . import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module")
def emulator():
    return build.load()


@pytest.fixture(autouse=True)
def _defaults(emulator):
    yield
    emulator.pyops_simt_set_seed(0)
    emulator.pyops_simt_set_shared_limit(232448)


def draw(batch, height, width, h, w, size=5, per_image=True):
    """Image, lut, query and parameters; weights of a size that keeps features and colours of order one."""
    weights = []
    for name, shape in ModulationWeights.shapes().items():
        weight = torch.randn(shape)
        if len(shape) == 4:
            weight /= math.sqrt(weight[0].numel())
        elif name in ("norm1", "norm2", "temperature"):
            weight = 1 + 0.3 * weight
        weights.append(weight)
    lut = torch.rand(*((batch,) if per_image else ()), 3, size, size, size)
    return (
        torch.rand(batch, 3, height, width),
        lut,
        torch.randn(batch, 8, h, w),
        ModulationWeights(*weights).pack(),
    )


def fused(image, lut, query, parameters):
    return torch.ops.pyops_simt.relation_aware_modulation(image, lut, query, parameters)


def assert_follows_the_definition(inputs, atol=1e-5):
    image, lut, query, parameters = (t.double() for t in inputs)
    exact = reference.relation_aware_modulation(image, lut, query, ModulationWeights.unpack(parameters))
    result = fused(*inputs)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=atol)
    return result


# Results of a block are 58 x 26 pixels.
@pytest.mark.parametrize("height, width", [(26, 58), (27, 59), (25, 117), (53, 1), (1, 57), (1, 1), (2, 3)])
def test_regions_meet_without_seams(height, width):
    assert_follows_the_definition(draw(1, height, width, 3, 4))


# Rows, columns, and windows along each.
WINDOWS = {
    "a window larger than several regions": (70, 130, 1, 1),
    "pieces of a window, and a window of pieces": (64, 8, 2, 3),
    "a window as large as fits": (30, 62, 1, 1),
    "and a little larger": (31, 63, 1, 1),
    "one for each pixel": (31, 63, 31, 63),
    "windows that overlap": (37, 50, 8, 7),
    "more windows than pixels": (5, 6, 9, 20),
    "more than a block takes": (2, 3, 140, 3),
    "many for one pixel": (1, 1, 70, 1),
}


@pytest.mark.parametrize("sizes", WINDOWS.values(), ids=WINDOWS)
def test_windows_of_every_size(sizes):
    """A query that is zero but in one place makes the attention depend on the key there alone."""
    height, width, h, w = sizes
    image, lut, query, parameters = draw(3, height, width, h, w)
    image, lut = image[:1].expand_as(image), lut[:1].expand_as(lut)
    mask = torch.zeros(3, h * w)
    for row, place in enumerate((0, h * w - 1, h * w * 2 // 3)):
        mask[row, place] = 1
    assert_follows_the_definition((image, lut, query * mask.view(3, 1, h, w), parameters))


@pytest.mark.parametrize("height, width, h, w", [(40, 70, 16, 16), (27, 9, 40, 7)])
def test_the_order_of_threads_changes_nothing(emulator, height, width, h, w):
    inputs = draw(1, height, width, h, w)
    results = []
    for seed in range(3):
        emulator.pyops_simt_set_seed(seed)
        results.append(assert_follows_the_definition(inputs))
    assert all(torch.equal(results[0], result) for result in results)


def strided(image, layout):
    """The same image as rows of pixels, as pixels of channels, or as neither."""
    if layout == "channels_last":
        return image.contiguous(memory_format=torch.channels_last)
    if layout == "every other column":
        wide = image.new_zeros(*image.shape[:-1], 2 * image.shape[-1])
        wide[..., ::2] = image
        return wide[..., ::2]
    if layout == "transposed":
        return image.transpose(2, 3).contiguous().transpose(2, 3)
    return image


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every other column", "transposed"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.uint16], ids=str
)
def test_types_and_layouts_give_the_same_numbers(dtype, layout):
    image, *others = draw(2, 27, 11, 4, 5, per_image=layout != "transposed")
    levels = 0 if dtype.is_floating_point else torch.iinfo(dtype).max
    image = (image * levels).round().to(dtype) if levels else image.to(dtype)
    expected = fused(image.float() / levels if levels else image.float(), *others)
    if levels:
        expected = (expected.clamp(0, 1) * levels).round()
    given = strided(image, layout)
    result = fused(given, *others)
    assert result.dtype == dtype and torch.equal(result, expected.to(dtype)) and torch.equal(given, image)
    assert result.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


def test_a_block_fits_the_smallest_multiprocessors(emulator):
    """99 KB on sm_86, sm_89 and sm_120, of which 3 KB are what the kernels declare themselves."""
    inputs = draw(1, 5, 6, 2, 3)
    expected = fused(*inputs)
    emulator.pyops_simt_set_shared_limit(96 * 1024 + 1024)
    assert torch.equal(fused(*inputs), expected)


def test_an_image_that_is_not_finite_spoils_no_other():
    image, lut, query, parameters = draw(3, 9, 60, 2, 3)
    expected = fused(image, lut, query, parameters)
    image[1, 2, 4, 58] = math.nan
    result = fused(image, lut, query, parameters)
    assert torch.equal(result[[0, 2]], expected[[0, 2]]) and result[1].isnan().all()


def test_a_flat_image_stays_flat():
    """Tiles give the same bits: far from the image's edges, which four pixels see, all pixels are equal."""
    image, *others = draw(1, 60, 130, 2, 2)
    result = fused(image[..., :1, :1].expand_as(image).contiguous(), *others)[..., 4:-4, 4:-4]
    assert torch.equal(result, result[..., :1, :1].expand_as(result))


def test_large_features_far_out_in_the_tails_of_gelu():
    image, lut, query, parameters = draw(1, 20, 30, 3, 3)
    assert_follows_the_definition((image, (lut - 0.5) * 60, query, parameters), atol=2e-5)
