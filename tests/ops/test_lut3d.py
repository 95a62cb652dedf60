"""lut3d: the contract on its cases, and every way to call it drawn at random."""

from __future__ import annotations

import itertools

import contract
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import require_free

import pyops
from pyops import testing
from pyops.testing import Invalid, OpCase, gradients, in_double

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LEVELS = {torch.uint8: 255, torch.uint16: 65535}
INTERPOLATIONS = ("trilinear", "tetrahedral")

# ---- cases ---------------------------------------------------------------------------------------------


def draw_image(shape, dtype, generator):
    """Colours a little beyond [0, 1]; some exactly 0 or 1, some grey."""
    image = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    kind = torch.randint(0, 16, (shape[0], 1, *shape[2:]), generator=generator)
    image = torch.where(kind == 0, image[:, :1], image)
    image = torch.where(kind == 1, image.round(), image)
    if dtype in LEVELS:
        return (image.clamp(0, 1) * LEVELS[dtype]).round().to(dtype)
    return image.to(dtype)


def draw_vertices(lead, size, dtype, generator):
    steps = torch.rand(*lead, 3, size - 1, generator=generator, dtype=torch.float64) + 0.2
    axis = steps.cumsum(-1) / steps.sum(-1, keepdim=True)
    return torch.nn.functional.pad(axis, (1, 0)).to(dtype)


def make_inputs(interpolation, non_uniform, per_image):
    def make(shape, dtype, device, generator):
        batch, height, width, size = shape
        lead = (batch,) if per_image else ()
        floating = dtype if dtype.is_floating_point else torch.float32
        lut = torch.rand(*lead, 3, size, size, size, generator=generator, dtype=torch.float64) * 1.2 - 0.1
        inputs = {"image": draw_image((batch, 3, height, width), dtype, generator), "lut": lut.to(floating)}
        if non_uniform:
            inputs["vertices"] = draw_vertices(lead, size, floating, generator)
        return {**{k: t.to(device) for k, t in inputs.items()}, "interpolation": interpolation}

    return make


def fractions(inputs):
    """Where the pixels lie, in cells from the first vertex: float64, the shape of the image."""
    image, vertices, size = inputs["image"].double(), inputs.get("vertices"), inputs["lut"].shape[-1]
    v = image.clamp(0, 1)
    if vertices is None:
        return v * (size - 1)
    axes = vertices.double().expand(len(image), 3, size).contiguous()
    flat = v.flatten(2).contiguous()
    cell = torch.searchsorted(axes[..., 1:-1].contiguous(), flat, right=True)
    low, high = axes.gather(2, cell), axes.gather(2, cell + 1)
    return (cell + (flat - low) / (high - low)).view(v.shape)


def near_discontinuity(inputs, name):
    """Integers: next to the middle of two levels. Gradients: next to an edge of a cell or tetrahedron."""
    image = inputs["image"]
    if name is None:
        if image.is_floating_point():
            return None
        levels = LEVELS[image.dtype]
        real = image.double() / levels
        scaled = levels * pyops.reference.lut3d(**{**in_double(inputs), "image": real}).clamp(0, 1)
        error = 1e-7 * (5 + 2 * inputs["lut"].shape[-1])  # the steeper the table, the larger
        return (scaled.frac() - 0.5).abs() < error * levels
    if name != "image":
        return None
    place = fractions(inputs)
    clamped = (image < -1e-4) | (image > 1 + 1e-4)
    near = (((place - place.round()).abs() < 1e-4) & ~clamped).any(1, keepdim=True)
    if inputs["interpolation"] == "tetrahedral":
        f = place.frac()
        near |= ((f - f.roll(1, 1)).abs() < 1e-4).any(1, keepdim=True)
    return near.expand(image.shape)


def poison(inputs, value):
    image = inputs["image"].clone()
    touched = torch.zeros_like(image, dtype=torch.bool)
    batch, _, height, width = image.shape
    image[-1, 1, height // 2, width // 2] = value
    image[0, 0, 0, width - 1] = value
    touched[batch - 1, :, height // 2, width // 2] = True
    touched[0, :, 0, width - 1] = True
    return {**inputs, "image": image}, touched


def invalid(inputs):
    image, lut = inputs["image"], inputs["lut"]
    batch, size = len(image), lut.shape[-1]
    axis = torch.linspace(0, 1, size, device=image.device).expand(3, size)
    falling, short, far = axis.clone(), axis.clone(), axis.clone()
    falling[1, 2] = falling[1, 1]
    short[2, -1] -= 0.01
    far[0, 0] = 0.02
    nan = torch.where(axis == axis[0, 1], torch.nan, axis)

    def shape(t):
        return str(list(t.shape))

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    def bad_lut(*size):
        return image.new_zeros(1).expand(size)

    wide = bad_lut(3, 130, 130, 130)
    layout = "[3, N, N, N]"
    return [
        wrong("no tensor", TypeError, "image", "torch.Tensor", "list", image=[1.0]),
        wrong("no tensor", TypeError, "lut", "torch.Tensor", "NoneType", lut=None),
        wrong("no tensor", TypeError, "vertices", "torch.Tensor", "int", vertices=3),
        wrong("rank 2", ValueError, "image", "[B, 3, H, W]", shape(image[0, 0]), image=image[0, 0]),
        wrong("rank 5", ValueError, "image", "[B, 3, H, W]", shape(image[None]), image=image[None]),
        wrong("channels", ValueError, "image", "[B, 3, H, W]", shape(image[:, :2]), image=image[:, :2]),
        wrong("dtype", TypeError, "image", "uint8", "int32", image=image.int()),
        wrong("dtype", TypeError, "image", "complex64", image=image.to(torch.complex64)),
        wrong("dtype", TypeError, "lut", "float32", "uint8", lut=lut.byte()),
        wrong("dtype", TypeError, "vertices", "float32", "int64", vertices=axis.long()),
        wrong("rank", ValueError, "lut", layout, shape(bad_lut(5, 5, 5)), lut=bad_lut(5, 5, 5)),
        wrong("rank", ValueError, "lut", "[B", "[1, 1, 3, 2", lut=bad_lut(1, 1, 3, 2, 2, 2)),
        wrong("channels", ValueError, "lut", layout, "[4, 5, 5, 5]", lut=bad_lut(4, 5, 5, 5)),
        wrong("not cubic", ValueError, "lut", layout, "[3, 5, 5, 4]", lut=bad_lut(3, 5, 5, 4)),
        wrong("not cubic", ValueError, "lut", layout, "[3, 4, 5, 5]", lut=bad_lut(3, 4, 5, 5)),
        wrong("N = 1", ValueError, "lut", "2 to 129", "[3, 1, 1, 1]", lut=bad_lut(3, 1, 1, 1)),
        wrong("N = 130", ValueError, "lut", "2 to 129", "[3, 130, 130, 130]", lut=wide),
        wrong(
            "batch", ValueError, "lut", f"B={batch}", f"[{batch + 1}, 3", lut=bad_lut(batch + 1, 3, 5, 5, 5)
        ),
        wrong("device", ValueError, "lut", "device", "meta", lut=lut.to("meta")),
        wrong("device", ValueError, "vertices", "device", "meta", vertices=axis.to("meta")),
        wrong("shape", ValueError, "vertices", f"N={size}", shape(axis[:, 1:]), vertices=axis[:, 1:]),
        wrong("shape", ValueError, "vertices", "[3, N", shape(axis[0]), vertices=axis[0]),
        wrong(
            "batch",
            ValueError,
            "vertices",
            f"B={batch}",
            f"[{batch + 1}",
            vertices=axis.expand(batch + 1, -1, -1),
        ),
        wrong("equal", ValueError, "vertices", "increasing", vertices=falling)._replace(by_value=True),
        wrong("falling", ValueError, "vertices", "increasing", vertices=axis.flip(-1))._replace(
            by_value=True
        ),
        wrong("NaN", ValueError, "vertices", "increasing", vertices=nan)._replace(by_value=True),
        wrong("not up to 1", ValueError, "vertices", "from 0 to 1", vertices=short)._replace(by_value=True),
        wrong("not from 0", ValueError, "vertices", "from 0 to 1", vertices=far)._replace(by_value=True),
        wrong("name", ValueError, "interpolation", "'trilinear'", "'cubic'", interpolation="cubic"),
    ]


def case(interpolation, non_uniform, per_image):
    words = (
        interpolation,
        "non_uniform" if non_uniform else "uniform",
        "per_image" if per_image else "shared",
    )
    return OpCase(
        name="-".join(words),
        function=pyops.lut3d,
        reference=pyops.reference.lut3d,
        make_inputs=make_inputs(interpolation, non_uniform, per_image),
        differentiable=("image", "lut", *(["vertices"] if non_uniform else [])),
        dtypes=(*FLOATS, *LEVELS),
        # batch, height, width, N: pixels few and many for the table, one and several threads
        shapes=(
            *((2, 90, 107, 9), (3, 31, 17, 4), (2, 3, 5, 17), (1, 9, 11, 33), (1, 1, 1, 2), (2, 1, 9, 5)),
            *((0, 4, 5, 5), (2, 0, 5, 5), (2, 4, 0, 5)),
        ),
        small=((2, 5, 7, 4), (3, 8, 9, 5)),
        tiny=(2, 2, 3, 3),
        near_discontinuity=near_discontinuity,
        poison=poison,
        invalid=invalid,
    )


CASES = [
    case("trilinear", non_uniform=False, per_image=False),
    case("trilinear", non_uniform=True, per_image=True),
    case("tetrahedral", non_uniform=False, per_image=True),
    case("tetrahedral", non_uniform=True, per_image=False),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- any call at all -----------------------------------------------------------------------------------


@st.composite
def calls(draw):
    batch = draw(st.integers(0, 3))
    height, width = draw(st.integers(0, 23)), draw(st.integers(0, 23))
    size = draw(st.one_of(st.integers(2, 12), st.just(33)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from((*FLOATS, *LEVELS)))
    image = draw_image((batch, 3, height, width), dtype, generator)
    order = draw(st.permutations(range(4)))
    image = image.permute(order).contiguous().permute([order.index(i) for i in range(4)])
    image = image[..., :: draw(st.integers(1, 3)), :: draw(st.integers(1, 2))]
    if draw(st.booleans()) and image.shape[-1]:
        image = image[..., :1].expand(image.shape)
    lead = (batch,) if draw(st.booleans()) else ()
    lut = torch.rand(*lead, 3, size, size, size, generator=generator).to(draw(st.sampled_from(FLOATS)))
    inputs = {"image": image, "lut": lut, "interpolation": draw(st.sampled_from(INTERPOLATIONS))}
    kind = draw(st.sampled_from(("uniform", "shared", "per image")))
    if kind != "uniform":
        lead = (batch,) if kind == "per image" else ()
        inputs["vertices"] = draw_vertices(lead, size, draw(st.sampled_from(FLOATS[::3])), generator)
    return inputs


@settings(max_examples=80, deadline=None, derandomize=True)
@given(calls())
def test_any_call(inputs):
    image = inputs["image"]
    result, exact = pyops.lut3d(**inputs), pyops.reference.lut3d(**in_double(inputs))
    assert result.dtype == image.dtype and result.shape == image.shape
    if not image.is_floating_point():
        band = near_discontinuity(inputs, None)
        testing.assert_close_with_boundary_band(result, exact, band, atol=0, max_share=0.1)
        return
    testing.assert_forward_close(result, exact, pyops.reference.lut3d(**inputs))
    names = [name for name in ("image", "lut", "vertices") if name in inputs]
    upstream = torch.randn(image.shape, dtype=torch.float64).masked_fill(
        near_discontinuity(inputs, "image"), 0
    )
    upstream = upstream.to(image.dtype)
    _, ours = gradients(pyops.lut3d, inputs, names, upstream)
    _, theirs = gradients(pyops.reference.lut3d, in_double(inputs), names, upstream)
    for name in names:
        coarse = torch.finfo(inputs[name].dtype).eps
        testing.assert_grad_close(
            ours[name], theirs[name], rounding=max(coarse, torch.finfo(torch.float32).eps)
        )


# ---- far apart in memory -------------------------------------------------------------------------------


def test_strides_beyond_32_bits():
    """The memory between is reserved, not touched."""
    stride = 1_100_000_000
    memory = torch.empty(2 * stride + 4096, dtype=torch.uint8)
    image = memory.as_strided((1, 3, 5, 7), (0, stride, 64, 1))
    plain = draw_image((1, 3, 5, 7), torch.uint8, torch.Generator().manual_seed(1))
    image.copy_(plain)
    lut = torch.rand(3, 5, 5, 5)
    assert torch.equal(pyops.lut3d(image, lut), pyops.lut3d(plain, lut))
    image = memory.as_strided((3, 3, 5, 7), (stride, 64 * 8, 64, 1))
    image.copy_(plain.expand(3, -1, -1, -1))
    assert torch.equal(pyops.lut3d(image, lut), pyops.lut3d(plain, lut).expand(3, -1, -1, -1))


@pytest.mark.slow
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("dtype", (torch.uint8, torch.float16))
def test_more_elements_than_32_bits(layout, dtype, device):
    """Both ends and the middle of an image of more than 2^31 values; of a float image, the gradient too."""
    side = 27_000
    needed = 3 * side * side * dtype.itemsize * (2 if dtype == torch.uint8 else 3) + 2**30
    require_free(needed, device)
    image = torch.empty((1, 3, side, side), dtype=dtype, memory_format=layout, device=device).zero_()
    rows = [slice(0, 2), slice(side // 2, side // 2 + 2), slice(side - 2, side)]
    draws = (draw_image((1, 3, 2, side), dtype, torch.Generator().manual_seed(i)) for i in range(3))
    tiles = [tile.to(device) for tile in draws]
    for at, tile in zip(rows, tiles, strict=True):
        image[:, :, at] = tile
    lut = torch.rand(3, 9, 9, 9).to(device)
    result = pyops.lut3d(image, lut)
    for at, tile in zip(rows, tiles, strict=True):
        assert torch.equal(result[:, :, at], pyops.lut3d(tile, lut))
    if dtype == torch.float16:
        del result
        upstream = torch.ones(1, dtype=dtype, device=device).expand(image.shape)
        grad, _, _ = torch.ops.pyops.lut3d_backward(upstream, image, lut, None, False, True, False, False)
        for at, tile in zip(rows, tiles, strict=True):
            _, expected = gradients(
                pyops.lut3d, {"image": tile, "lut": lut}, ["image"], torch.ones_like(tile)
            )
            assert torch.equal(grad[:, :, at], expected["image"])


@pytest.mark.parametrize("op", ("lut3d", "lut3d_backward"))
def test_operator_checks_memory_itself(op):
    """Also where the public function, which says it better, is passed by."""
    image, lut, axis = torch.rand(2, 3, 4, 5), torch.rand(3, 5, 5, 5), torch.linspace(0, 1, 5).expand(3, 5)
    wrong = {
        "image": [image[0], image[:, :2], image.int()],
        "lut": [lut[0], lut[:2], lut[:, :4], lut[..., :4], lut[:, :1, :1, :1], lut.byte()],
        "vertices": [axis[:2], axis[:, :4], axis[0], axis.expand(3, 3, 5), axis.int()],
        "lut batch": [lut.expand(3, 3, 5, 5, 5)],
    }
    flags = (False,) if op == "lut3d" else (False, True, True, True)
    function = getattr(torch.ops.pyops, op)
    for name, value in itertools.chain.from_iterable([(k, v) for v in vs] for k, vs in wrong.items()):
        args = {"image": image, "lut": lut, "vertices": axis} | {name.split()[0]: value}
        first = () if op == "lut3d" else (torch.rand(2, 3, 4, 5),)
        with pytest.raises(RuntimeError, match=name.split()[0]):
            function(*first, *args.values(), *flags)
    if op == "lut3d_backward":
        for grad in (image[:1], image[..., :4], image.double()):
            with pytest.raises(RuntimeError, match="grad"):
                function(grad, image, lut, axis, *flags)
