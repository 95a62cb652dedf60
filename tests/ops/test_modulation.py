"""Relation-aware modulation: the contract, then the two fused passes, which run only where no gradient is wanted."""

from __future__ import annotations

import math

import contract
import pytest
import torch
from memory import LAYOUTS, Guarded, guarded_allocations, relayout
from torch.testing import assert_close
from transforms import Recorder

import pyops
from pyops import ModulationWeights, testing
from pyops.testing import Invalid, OpCase, in_double


def draw_weights(generator, dtype=torch.float64):
    """Weights of a size that keeps features and colours of order one."""
    packed = []
    for name, shape in ModulationWeights.shapes().items():
        w = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 4:
            w = w / math.sqrt(w[0].numel())
        elif name in ("norm1", "norm2", "temperature"):
            w = 1 + 0.3 * w
        elif name == "out_bias":
            w = 0.5 + 0.1 * w
        packed.append((0.2 * w if name == "out" else w).flatten())
    return torch.cat(packed).to(dtype)


def make_inputs(per_image):
    def make(shape, dtype, device, generator):
        batch, height, width, size, h, w = shape
        lead = (batch,) if per_image else ()
        # Colours keep away from the edges of cells, where the gradient of a table jumps.
        cell = torch.randint(0, size - 1, (batch, 3, height, width), generator=generator)
        place = 0.2 + 0.6 * torch.rand(cell.shape, generator=generator, dtype=torch.float64)
        image = (cell + place) / (size - 1)
        floating = dtype if dtype.is_floating_point else torch.float32
        inputs = {
            "image": (image * 255).round().to(dtype) if dtype == torch.uint8 else image.to(dtype),
            "lut": torch.rand(*lead, 3, size, size, size, generator=generator).to(floating),
            "query": torch.randn(batch, 8, h, w, generator=generator).to(floating),
            "parameters": draw_weights(generator, floating),
        }
        return {name: value.to(device) for name, value in inputs.items()}

    return make


def relation_aware_modulation(image, lut, query, parameters):
    return pyops.relation_aware_modulation(image, lut, query, ModulationWeights.unpack(parameters))


def reference(image, lut, query, parameters):
    return pyops.reference.relation_aware_modulation(image, lut, query, ModulationWeights.unpack(parameters))


def near_discontinuity(inputs, name):
    """Of integers, what lies in the middle of two levels."""
    if name is not None or inputs["image"].is_floating_point():
        return None
    real = {**in_double(inputs), "image": inputs["image"].double() / 255}
    return ((reference(**real).clamp(0, 1) * 255).frac() - 0.5).abs() < 2e-3


def invalid(inputs):
    image, lut, query, parameters = inputs.values()
    batch = len(image)

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "image", "torch.Tensor", "list", image=[1.0]),
        wrong("no tensor", TypeError, "query", "torch.Tensor", "NoneType", query=None),
        wrong("rank 3", ValueError, "image", "[B, 3, H, W]", image=image[0]),
        wrong("channels", ValueError, "image", "[B, 3, H, W]", image=image[:, :2]),
        wrong("empty", ValueError, "image", "at least 1", image=image[:, :, :0]),
        wrong("dtype", TypeError, "image", "int32", image=image.int()),
        wrong("lut", ValueError, "lut", "[3, N, N, N]", lut=lut[..., 1:]),
        wrong(
            "query batch", ValueError, "query", f"B={batch}", query=query[:1].expand(batch + 1, -1, -1, -1)
        ),
        wrong("query channels", ValueError, "query", "8", query=query[:, :4]),
        wrong("query empty", ValueError, "query", "at least 1", query=query[..., :0]),
        wrong("query dtype", TypeError, "query", "int64", query=query.long()),
        wrong("query device", ValueError, "query", "device", "meta", query=query.to("meta")),
        wrong("weights dtype", TypeError, "weights.conv", "int32", parameters=parameters.int()),
        wrong("weights device", ValueError, "weights.conv", "device", parameters=parameters.to("meta")),
    ]


def case(name, per_image):
    return OpCase(
        name=name,
        function=relation_aware_modulation,
        reference=reference,
        make_inputs=make_inputs(per_image),
        differentiable=("image", "lut", "query", "parameters"),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8),
        # batch, height, width, N, height and width of the query: fewer and more windows than pixels, several tiles
        shapes=(
            *((2, 37, 53, 5, 8, 12), (1, 150, 270, 9, 16, 33), (1, 3, 5, 4, 7, 2), (1, 1, 1, 2, 3, 3)),
            *((1, 1, 300, 3, 1, 4), (1, 270, 1, 3, 300, 1), (0, 4, 5, 3, 2, 2)),
        ),
        small=(
            (2, 9, 11, 4, 6, 7),
            (4, 13, 20, 5, 6, 7),
        ),  # torch.compile takes the size of a pooled map for a constant
        tiny=(1, 2, 3, 3, 2, 2),
        near_discontinuity=near_discontinuity,
        invalid=invalid,
        compiler="aot_eager",  # inductor cannot size the layers' convolutions when every size is a symbol
    )


CASES = [case("modulation-per_image", True), case("modulation-shared", False)]


class TestContract(contract.Contract):
    cases = CASES


# ---- the fused passes ----------------------------------------------------------------------------------


def fused(inputs):
    with torch.no_grad():
        return relation_aware_modulation(**inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_layouts_and_guards(layout):
    """Strides change nothing, no input is written to, and no result comes from memory never written."""
    plain = CASES[0].inputs((2, 19, 21, 4, 5, 6), torch.float32)
    inputs = {name: relayout(value, layout) for name, value in plain.items()}
    expected, runs = fused(plain), []
    for fill in (0xFF, 0x3C):
        guarded = Guarded(fill)
        copies = {name: guarded.copy(value) for name, value in inputs.items()}
        with guarded_allocations(guarded, "cpu"):
            runs.append(fused(copies))
        guarded.check()
        assert all(torch.equal(copies[name], inputs[name]) for name in inputs)
    assert torch.equal(*runs)
    assert_close(runs[0], expected, rtol=0, atol=0)
    assert runs[0].is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_fused_is_repeatable_for_any_number_of_threads(threads):
    inputs = CASES[0].inputs((2, 300, 500, 9, 33, 20), torch.float32)
    expected, before = fused(inputs), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(fused(inputs), expected)
    finally:
        torch.set_num_threads(before)


def test_fused_equals_layers():
    inputs = CASES[0].inputs((1, 400, 700, 17, 64, 64), torch.float32)
    assert_close(fused(inputs), reference(**inputs), rtol=0, atol=2e-5)


def test_a_part_of_a_large_image_is_that_of_a_small_one():
    """Tiles leave no seams: away from the cut edges a crop gives the same bits, if the keys are the same."""
    inputs = CASES[1].inputs((1, 290, 600, 5, 1, 1), torch.float32)
    inputs["image"][:] = inputs["image"][..., :1, :1]  # a flat image: every window has the same key
    inner = fused(inputs)[..., 8:-8, 8:-8]
    assert torch.equal(inner, inner[..., :1, :1].expand_as(inner))


def test_gradient_takes_the_layers_and_no_gradient_the_passes():
    inputs = CASES[0].inputs((1, 9, 9, 4, 4, 4), torch.float32)
    with Recorder() as recorder:
        fused(inputs)
    assert [str(op) for op, _ in recorder.calls] == ["pyops.relation_aware_modulation.default"]
    with Recorder() as recorder:
        relation_aware_modulation(**{**inputs, "query": inputs["query"].requires_grad_()})
    assert [str(op) for op, _ in recorder.calls] == ["pyops.lut3d.default"]


@pytest.mark.parametrize("dtype", (torch.uint8, torch.uint16))
def test_integers_are_the_rounded_floats(dtype):
    levels = torch.iinfo(dtype).max
    inputs = CASES[0].inputs((1, 40, 50, 5, 8, 8), torch.float32)
    inputs["image"] = (inputs["image"] * levels).round() / levels
    expected = fused(inputs).clamp(0, 1) * levels
    inputs["image"] = (inputs["image"] * levels).round().to(dtype)
    result = fused(inputs)
    assert result.dtype == dtype and (result.double() - expected.double()).abs().max() <= 0.5 + 1e-6 * levels


def test_not_a_number_spoils_its_surroundings_of_four_pixels_and_the_attention():
    """Keys are pooled over everything, so one NaN reaches the attention; nothing crashes, integers become 0."""
    inputs = CASES[0].inputs((2, 20, 30, 4, 4, 4), torch.float32)
    clean = fused(inputs)
    inputs["image"] = inputs["image"].clone()
    inputs["image"][1, 2, 10, 10] = math.nan
    result = fused(inputs)
    assert torch.equal(result[0], clean[0]) and result[1, :, 10, 10].isnan().all()
    assert torch.equal(result[1].isnan(), reference(**inputs)[1].isnan())


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_opcheck_of_the_operator(layout):
    inputs = CASES[0].inputs((2, 5, 6, 4, 2, 3), torch.float32)
    inputs = [relayout(value, layout) for value in inputs.values()]
    torch.library.opcheck(torch.ops.pyops.relation_aware_modulation.default, inputs)


@pytest.mark.parametrize(
    "mapped", ((0, 0, 0, None), (None, 0, None, None), (0, None, None, 0), (1, None, -1, None))
)
def test_vmap_of_the_passes(mapped):
    rows = [CASES[0].inputs((2, 5, 6, 4, 2, 3), torch.float32, seed=seed) for seed in range(3)]
    stacked = []
    for name, dim in zip(rows[0], mapped, strict=True):
        values = [row[name] for row in rows]
        stacked.append(values[0] if dim is None else torch.stack(values, dim))
        for row in rows:
            row[name] = row[name] if dim is not None else values[0]
    with torch.no_grad():
        result = torch.vmap(relation_aware_modulation, mapped)(*stacked)
    assert_close(result, torch.stack([fused(row) for row in rows]), rtol=0, atol=1e-6)


def test_compiled_without_gradients():
    torch._dynamo.reset()
    compiled = torch.compile(relation_aware_modulation, fullgraph=True, dynamic=True)
    for shape in CASES[0].small:
        inputs = CASES[0].inputs(shape, torch.float32)
        with torch.no_grad():
            assert_close(compiled(**inputs), relation_aware_modulation(**inputs), rtol=0, atol=0)


def test_pack_and_unpack():
    packed = draw_weights(torch.Generator().manual_seed(0), torch.float32)
    weights = ModulationWeights.unpack(packed)
    assert torch.equal(weights.pack(), packed) and len(packed) == 1485
    assert {name: tuple(w.shape) for name, w in weights._asdict().items()} == ModulationWeights.shapes()


def test_wrong_weights():
    image, lut, query, parameters = CASES[0].inputs((1, 4, 4, 3, 2, 2), torch.float32).values()
    weights = ModulationWeights.unpack(parameters)
    with pytest.raises(TypeError, match=r"weights must be pyops\.ModulationWeights, got tuple"):
        pyops.relation_aware_modulation(image, lut, query, tuple(weights))
    with pytest.raises(ValueError, match=r"weights\.project must be \[8, 8, 1, 1\], got shape \[8, 8\]"):
        pyops.relation_aware_modulation(
            image, lut, query, weights._replace(project=weights.project[..., 0, 0])
        )


def test_operator_checks_memory_itself():
    inputs = CASES[0].inputs((2, 4, 5, 3, 2, 2), torch.float32)
    query, parameters = inputs["query"], inputs["parameters"]
    wrong = [
        *(("image", inputs["image"][:, :2]), ("image", inputs["image"].double()), ("lut", inputs["lut"][:1])),
        *(("query", query[:1]), ("query", query[:, :7]), ("query", query.half()), ("query", query[..., :0])),
        *(("parameters", parameters[1:]), ("parameters", parameters.double())),
        ("parameters", torch.stack([parameters, parameters], 1)[:, 0]),
    ]
    for name, value in wrong:
        with pytest.raises(RuntimeError, match=name):
            torch.ops.pyops.relation_aware_modulation(*{**inputs, name: value}.values())


def test_error_bound_holds_for_large_colours():
    """Extrapolated features, far out in gelu's tails."""
    inputs = CASES[0].inputs((1, 30, 40, 4, 6, 6), torch.float32)
    inputs["lut"] = (inputs["lut"] - 0.5) * 40
    testing.assert_forward_close(fused(inputs), reference(**in_double(inputs)), reference(**inputs))
