"""Sampling on separable grids: the contract on its cases, and every way to call it drawn at random."""

from __future__ import annotations

import closeness
import contract
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyops
from pyops import reference, testing
from pyops.testing import Invalid, OpCase, in_double

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LEVELS = {torch.uint8: 255, torch.uint16: 65535}
RAW = 16  # coordinates on longer axes are rounded such that positions are exact: gradients would show the errors

# ---- inputs --------------------------------------------------------------------------------------------


def draw_image(shape, dtype, generator):
    """Values a little beyond [0, 1]."""
    image = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    if dtype in LEVELS:
        return (image.clamp(0, 1) * LEVELS[dtype]).round().to(dtype)
    return image.to(dtype)


def draw_coordinates(batch, count, size, order, dtype, generator):
    """Places on the image, and a little beyond it."""
    place = torch.rand(batch, count, generator=generator, dtype=torch.float64) * 2.5 - 1.25
    if size > RAW:
        place = (place * 1024).round() / 1024
    if order != "any":
        place = place.sort(-1, descending=order == "falling").values
    return place.to(dtype)


def make_inputs(adaptive, order="any", as_float=False, **flags):
    """Shapes are batch, channels, height, width, rows and columns of the result.

    With `as_float` results and coordinates are float32, whatever the image is.
    """

    def make(shape, dtype, device, generator):
        batch, channels, height, width, rows, columns = shape
        wide = dtype == torch.float64
        floating = torch.float32 if not dtype.is_floating_point or (as_float and not wide) else dtype
        inputs = {"image": draw_image((batch, channels, height, width), dtype, generator)}
        for name, count, size in (("x", columns, width), ("y", rows, height)):
            if adaptive:
                logits = torch.randn(batch, count - 1, generator=generator, dtype=torch.float64)
                inputs[f"{name}_logits"] = logits.to(floating)
            else:
                inputs[name] = draw_coordinates(batch, count, size, order, floating, generator)
        inputs = {name: t.to(device) for name, t in inputs.items()}
        return {**inputs, **flags, "dtype": torch.float32 if as_float and not wide else None}

    return make


# ---- where results and gradients jump ------------------------------------------------------------------


def positions(inputs):
    """Of the columns ``[B, Kx]`` and the rows ``[B, Ky]`` of the result, in pixels: float64."""
    found = []
    for name, size in zip("xy", inputs["image"].shape[:1:-1], strict=True):
        if name in inputs:
            place = inputs[name].double()
        else:
            place = 2 * reference.interval_vertices(inputs[f"{name}_logits"].double()) - 1
        found.append(
            (place + 1) / 2 * (size - 1) if inputs["align_corners"] else ((place + 1) * size - 1) / 2
        )
    return found


def jumps(position, inputs):
    """The samples whose slope rounding may change by much: those on a pixel, and means over cells thin as a hair."""
    jump = (position - position.round()).abs() < 1e-4
    if inputs["antialias"]:
        middle = (position[:, 1:] + position[:, :-1]) / 2
        width = torch.cat([position[:, :1], middle, position[:, -1:]], 1).diff(dim=1).abs()
        jump = torch.where(width == 0, jump, width < 1e-2)
    if "x_logits" in inputs:
        jump[:, [0, -1]] = False  # these do not move
    return jump


def near_discontinuity(inputs, name):
    image, (columns, rows) = inputs["image"], positions(inputs)
    if name is None:
        if image.is_floating_point() or inputs["dtype"] is not None:
            return None
        levels, size = LEVELS[image.dtype], sum(image.shape[2:])
        function = reference.separable_grid_sample if "x" in inputs else reference.adaptive_grid_sample
        scaled = levels * function(**in_double({**inputs, "image": image.double() / levels})).clamp(0, 1)
        exact = "x" in inputs and min(image.shape[2:]) > RAW
        error = 5e-7 if exact else 1.2e-7 * (4 + size)  # of positions, and so of samples
        return (scaled.frac() - 0.5).abs() < error * levels
    if name == "image":
        return None
    jump = jumps(columns, inputs)[:, None, None] if name[0] == "x" else jumps(rows, inputs)[:, None, :, None]
    return jump.expand(*image.shape[:2], rows.shape[1], columns.shape[1])


def poison(inputs, value):
    """One pixel beside the sample that is nearest to the middle of the image."""
    image = inputs["image"].clone()
    pixel, touched = [], []
    for position, size in zip(positions(inputs), image.shape[:1:-1], strict=True):
        last = position[-1].clamp(0, size - 1) if inputs["padding_mode"] == "border" else position[-1]
        below = last.floor()
        pixel.append(int(below[(last - size / 2).abs().argmin()]))
        touched.append((below == pixel[-1]) | (below + 1 == pixel[-1]))
    image[-1, 0, pixel[1], pixel[0]] = value
    mask = torch.zeros(*image.shape[:2], len(touched[1]), len(touched[0]), dtype=torch.bool)
    mask[-1, 0] = touched[1][:, None] & touched[0]
    return {**inputs, "image": image}, mask.to(image.device)


# ---- wrong calls ---------------------------------------------------------------------------------------


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid(inputs):
    image, batch = inputs["image"], len(inputs["image"])
    names = ("x", "y") if "x" in inputs else ("x_logits", "y_logits")
    found = [
        wrong("no tensor", TypeError, "image", "torch.Tensor", "list", image=[1.0]),
        wrong("rank 3", ValueError, "image", "[B, C, H, W]", str(list(image[0].shape)), image=image[0]),
        wrong("rank 5", ValueError, "image", "[B, C, H, W]", image=image[None]),
        wrong("dtype", TypeError, "image", "uint8", "int32", image=image.int()),
        wrong("dtype", TypeError, "image", "uint8", "complex64", image=image.to(torch.complex64)),
        wrong("no channel", ValueError, "image", f"[{batch}, 0, ", image=image[:, :0]),
        wrong("no row", ValueError, "image", str(list(image[:, :, :0].shape)), image=image[:, :, :0]),
        wrong("no column", ValueError, "image", str(list(image[..., :0].shape)), image=image[..., :0]),
        wrong(
            "name", ValueError, "padding_mode", "zeros", "border", "'reflection'", padding_mode="reflection"
        ),
        wrong("no name", ValueError, "padding_mode", "zeros", "border", "None", padding_mode=None),
        wrong("result", TypeError, "dtype", "float32", "int32", dtype=torch.int32),
        wrong("result", TypeError, "dtype", "float32", "float64", dtype=torch.float64),
    ]
    for name in names:
        value = inputs[name]
        more = value[:1].expand(batch + 1, -1)
        found += [
            wrong("no tensor", TypeError, name, "torch.Tensor", "NoneType", **{name: None}),
            wrong("dtype", TypeError, name, "float32", "int64", **{name: value.long()}),
            wrong("rank", ValueError, name, f"[B={batch}", str(list(value[0].shape)), **{name: value[0]}),
            wrong("rank", ValueError, name, f"[B={batch}", **{name: value[..., None]}),
            wrong("batch", ValueError, name, f"[B={batch}", str(list(more.shape)), **{name: more}),
            wrong("device", ValueError, name, "device", "meta", **{name: value.to("meta")}),
        ]
        if "x" not in inputs:
            found.append(wrong("K = 1", ValueError, name, str([batch, 0]), **{name: value[:, :0]}))
            found += not_finite(name, value)
    return found


def not_finite(name, value):
    if value.device.type != "cpu":  # nobody waits for a GPU to learn that
        return []
    bad = [torch.where(value == value[-1, 1], number, value) for number in (torch.nan, torch.inf, -torch.inf)]
    return [wrong("not finite", ValueError, name, "finite", **{name: value}) for value in bad]


def invalid_logits(inputs):
    logits = inputs["logits"]
    return [
        wrong("no tensor", TypeError, "logits", "torch.Tensor", "list", logits=[1.0]),
        wrong("dtype", TypeError, "logits", "float32", "int32", logits=logits.int()),
        wrong("rank", ValueError, "logits", "[]", logits=logits[0, 0]),
        wrong("K = 1", ValueError, "logits", str([len(logits), 0]), logits=logits[:, :0]),
        *not_finite("logits", logits),
    ]


def invalid_vertices(inputs):
    vertices = inputs["vertices"]
    level = vertices.clone()
    level[0, 1] = level[0, 0]
    return [
        wrong("no tensor", TypeError, "vertices", "torch.Tensor", "list", vertices=[1.0]),
        wrong("dtype", TypeError, "vertices", "float32", "int32", vertices=vertices.int()),
        wrong("rank", ValueError, "vertices", "[]", vertices=vertices[0, 0]),
        wrong("K = 1", ValueError, "vertices", str([len(vertices), 1]), vertices=vertices[:, :1]),
        wrong("equal", ValueError, "vertices", "increasing", vertices=level),
        wrong("falling", ValueError, "vertices", "increasing", vertices=vertices.flip(-1)),
        wrong("NaN", ValueError, "vertices", "increasing", vertices=vertices * torch.nan),
        wrong("size", ValueError, "size", "0", size=0),
    ]


# ---- cases ---------------------------------------------------------------------------------------------


def case(kind, *, align_corners, padding_mode, antialias, order="any", as_float=False):
    adaptive = kind == "adaptive"
    flags = dict(align_corners=align_corners, padding_mode=padding_mode, antialias=antialias)
    names = ("x_logits", "y_logits") if adaptive else ("x", "y")
    words = (
        kind,
        "antialias" if antialias else "point",
        padding_mode,
        *(["corners"] if align_corners else []),
    )
    large = ((2, 3, 13, 11, 150, 190), (1, 3, 90, 107, 31, 43), (2, 8, 1, 9, 4, 6), (1, 17, 7, 6, 5, 2))
    edges = ((2, 1, 1, 1, 3, 1), (0, 3, 4, 5, 6, 7), (2, 3, 4, 5, 0, 7), (2, 3, 4, 5, 6, 0))
    if adaptive:  # positions cannot be exact, so images are small
        large = ((2, 3, 13, 11, 150, 190), (2, 8, 1, 9, 4, 6), (1, 17, 7, 16, 5, 9))
        edges = ((2, 1, 1, 1, 3, 2), (0, 3, 4, 5, 6, 7))
    return OpCase(
        name="-".join((*words, *(["as_float"] if as_float else []))),
        function=pyops.adaptive_grid_sample if adaptive else pyops.separable_grid_sample,
        reference=reference.adaptive_grid_sample if adaptive else reference.separable_grid_sample,
        make_inputs=make_inputs(adaptive, order, as_float, **flags),
        differentiable=("image", *names),
        dtypes=(*FLOATS, *LEVELS),
        shapes=large + edges,
        small=((2, 3, 7, 6, 9, 11), (3, 5, 8, 9, 5, 7)),
        tiny=(2, 2, 3, 4, 3, 2),
        near_discontinuity=near_discontinuity,
        poison=None if antialias else poison,
        invalid=invalid,
    )


def make_logits(shape, dtype, device, generator):
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    return {"logits": logits.to(dtype).to(device)}


def make_vertices(shape, dtype, device, generator):
    *lead, count, size = shape
    steps = torch.rand(*lead, count - 1, generator=generator, dtype=torch.float64) + 0.3
    axis = torch.nn.functional.pad(steps.cumsum(-1) / steps.sum(-1, keepdim=True), (1, 0))
    return {"vertices": (2 * axis - 1).to(dtype).to(device), "size": size, "align_corners": size % 2 == 0}


def on_a_vertex(inputs, name):
    size, vertices = inputs["size"], inputs["vertices"].double()
    index = torch.arange(size, device=vertices.device)
    place = 2 * index / max(size - 1, 1) - 1 if inputs["align_corners"] else (2 * index + 1) / size - 1
    near = (place[:, None] - vertices[..., None, 1:-1]).abs() < 1e-4
    return near.any(-1) if name else None


CASES = [
    case("separable", align_corners=False, padding_mode="zeros", antialias=False),
    case(
        "separable",
        align_corners=True,
        padding_mode="border",
        antialias=False,
        order="falling",
        as_float=True,
    ),
    case("separable", align_corners=True, padding_mode="zeros", antialias=True, as_float=True),
    case("separable", align_corners=False, padding_mode="border", antialias=True, order="falling"),
    case("adaptive", align_corners=False, padding_mode="zeros", antialias=False, as_float=True),
    case("adaptive", align_corners=True, padding_mode="border", antialias=True),
    OpCase(
        name="interval_vertices",
        function=pyops.interval_vertices,
        reference=reference.interval_vertices,
        make_inputs=make_logits,
        differentiable=("logits",),
        dtypes=FLOATS,
        shapes=((300, 700), (2, 3, 255), (7,), (5, 1), (1, 2000), (0, 5), (2, 0, 3)),
        small=((3, 12), (5, 40)),
        tiny=(2, 3),
        invalid=invalid_logits,
    ),
    OpCase(
        name="inverse_vertices",
        function=pyops.inverse_vertices,
        reference=reference.inverse_vertices,
        make_inputs=make_vertices,
        differentiable=("vertices",),
        dtypes=FLOATS,
        shapes=((40, 9, 300), (2, 3, 12, 31), (7, 6), (3, 2, 1), (0, 5, 4)),
        small=((2, 7, 12), (3, 5, 12)),
        tiny=(2, 4, 5),
        near_discontinuity=on_a_vertex,
        invalid=invalid_vertices,
    ),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- any call at all -----------------------------------------------------------------------------------


@st.composite
def calls(draw):
    adaptive = draw(st.booleans())
    batch, channels = draw(st.integers(0, 3)), draw(st.sampled_from((1, 2, 3, 4, 5, 9)))
    height, width = draw(st.integers(1, RAW)), draw(st.integers(1, RAW))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from((*FLOATS, *LEVELS)))
    order = draw(st.permutations(range(4)))
    stretch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    image = draw_image((batch, channels, height * stretch[0], width * stretch[1]), dtype, generator)
    image = image.permute(order).contiguous().permute([order.index(i) for i in range(4)])
    image = image[..., :: stretch[0], :: stretch[1]]
    if draw(st.booleans()):
        image = image[..., :1].expand(image.shape)
    inputs = {
        "image": image,
        "align_corners": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(("zeros", "border"))),
        "antialias": draw(st.booleans()),
        "dtype": draw(st.sampled_from((None, torch.float32))),
    }
    for name in ("x", "y"):
        count = draw(st.integers(2 if adaptive else 0, 40))
        kind = draw(st.sampled_from(FLOATS))
        if adaptive:
            spread = draw(st.sampled_from((0.0, 1.0, 3.0)))
            logits = spread * torch.randn(batch, count - 1, generator=generator, dtype=torch.float64)
            inputs[f"{name}_logits"] = logits.to(kind)
        else:
            way = draw(st.sampled_from(("any", "rising", "falling")))
            inputs[name] = draw_coordinates(batch, count, 0, way, kind, generator)
        last = f"{name}_logits" if adaptive else name
        if draw(st.booleans()):
            inputs[last] = inputs[last].mT.contiguous().mT
        if draw(st.booleans()):
            inputs[last] = inputs[last][:1].expand(inputs[last].shape)
    return inputs


@settings(max_examples=100, deadline=None, derandomize=True)
@given(calls())
def test_any_call(inputs):
    image, kind = inputs["image"], "separable" if "x" in inputs else "adaptive"
    function, definition = (getattr(m, f"{kind}_grid_sample") for m in (pyops, reference))
    result, exact = function(**inputs), definition(**in_double(inputs))
    assert result.dtype == (inputs["dtype"] or image.dtype) and result.shape == exact.shape
    if not result.is_floating_point():
        band = near_discontinuity(inputs, None)
        testing.assert_close_with_boundary_band(result, exact, band, atol=0, max_share=0.1)
        return
    closeness.assert_values_close(function, definition, inputs)
    names = [name for name, t in inputs.items() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    upstream = torch.randn(result.shape, dtype=torch.float64)
    for name in names:
        band = near_discontinuity(inputs, name)
        upstream = upstream if band is None else upstream.masked_fill(band, 0)
    closeness.assert_gradients_close(
        function,
        definition,
        inputs,
        names,
        upstream.to(result.dtype),
        rounding=torch.finfo(torch.float32).eps,
    )
