"""Sampling and memory: how much it needs, what it may touch, and images too large for 32 bits."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch
from memory import require_free
from places import exact_places, pixel_centres, rand
from transforms import Recorder

import pyops
from pyops.testing import gradients

both_ways = pytest.mark.parametrize("antialias", (False, True), ids=("point", "antialias"))
MIB = 2**20


# ---- how much it needs ---------------------------------------------------------------------------------


def peak_growth(function):
    """Bytes by which the process grew at most while `function` ran, and its result."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name):
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1]) * 1024

    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("the peak of memory can be measured on Linux only")
    before = read("VmRSS")
    result = function()
    return read("VmHWM") - before, result


@both_ways
@pytest.mark.parametrize("dtype", (torch.uint8, torch.float16))
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_neither_a_grid_nor_a_float_copy_is_made(antialias, dtype, layout):
    """4K down to 256 x 256, and a small image up to 4K, whose grid would have 66 MB."""
    large = torch.zeros(1, 3, 2160, 3840, dtype=dtype).contiguous(memory_format=layout)
    small = torch.zeros(1, 1, 200, 300, dtype=dtype).contiguous(memory_format=layout)
    few, rows, columns = torch.zeros(1, 255), torch.zeros(1, 2159), torch.zeros(1, 3839)
    for image, x, y in ((large, few, few), (small, columns, rows)):

        def run(image=image, x=x, y=y):
            return pyops.adaptive_grid_sample(image, x, y, antialias=antialias)

        run(image[..., :8, :8])  # starts the threads
        grown, result = peak_growth(run)
        assert grown < result.nbytes + 12 * MIB


@pytest.mark.parametrize("kind", ("separable", "adaptive"))
def test_each_call_is_one_operator(kind):
    name = f"{kind}_grid_sample"
    image, x, y = rand(2, 3, 9, 8), torch.randn(2, 5), torch.randn(2, 4)
    leaves = [t.requires_grad_() for t in (image, x, y)]
    with Recorder() as recorder:
        getattr(pyops, name)(*leaves).sum().backward()
    assert [op.name() for op, _ in recorder.calls] == [f"pyops::{name}", f"pyops::{name}_backward"]
    with Recorder() as recorder:
        pyops.interval_vertices(x).sum().backward()
    assert [op.name() for op, _ in recorder.calls] == [
        "pyops::interval_vertices",
        "pyops::interval_vertices_backward",
    ]


# ---- what it may touch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("separable", "adaptive"))
@pytest.mark.parametrize("backward", (False, True), ids=("forward", "backward"))
def test_operators_check_memory_themselves(kind, backward):
    """Also where the public functions, which say it better, are passed by."""
    first, second = ("x", "y") if kind == "separable" else ("x_logits", "y_logits")
    right = {"image": rand(2, 3, 4, 5), first: rand(2, 6), second: rand(2, 7)}
    image = right["image"]
    wrong = {"image": [image[0], image[None], image[:, :0], image[:, :, :0], image[..., :0], image.int()]}
    for name in (first, second):
        value = right[name]
        wrong[name] = [value[0], value[None], value[:1], torch.cat([value, value]), value.int()]
        wrong[name] += [value[:, :0]] if kind == "adaptive" else []
    op = getattr(torch.ops.pyops, f"{kind}_grid_sample" + ("_backward" if backward else ""))
    grad = rand(2, 3, 7, 6) if kind == "separable" else rand(2, 3, 8, 7)
    lead, flags = ((grad,), (True, True, True)) if backward else ((), (False,))
    op(*lead, *right.values(), False, False, False, *flags)
    for antialias in (False, True):
        options = (False, False, antialias, *flags)
        for name, value in itertools.chain.from_iterable([(k, v) for v in vs] for k, vs in wrong.items()):
            with pytest.raises(RuntimeError, match=name):
                op(*lead, *{**right, name: value}.values(), *options)
        if backward:
            for value in (
                grad[:1],
                grad[:, :2],
                grad[:, :, 1:],
                grad[..., 1:],
                grad[0],
                grad.int(),
            ):
                with pytest.raises(RuntimeError, match="grad"):
                    op(value, *right.values(), *options)


def test_interval_operators_check_memory_themselves():
    logits, grad = rand(2, 5), rand(2, 6)
    for wrong in (logits[:, :0], logits[0, 0], logits.int()):
        with pytest.raises(RuntimeError, match="logits"):
            torch.ops.pyops.interval_vertices(wrong)
        with pytest.raises(RuntimeError, match="logits"):
            torch.ops.pyops.interval_vertices_backward(grad, wrong)
    for wrong in (logits, grad[0], grad[:1], grad.int()):
        with pytest.raises(RuntimeError, match="grad"):
            torch.ops.pyops.interval_vertices_backward(wrong, logits)


# ---- the same for any number of threads ----------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("kind", ("separable", "adaptive"))
def test_gradients_are_the_same_for_any_number_of_threads(antialias, layout, kind):
    function = functools.partial(getattr(pyops, f"{kind}_grid_sample"), antialias=antialias)
    first, second = ("x", "y") if kind == "separable" else ("x_logits", "y_logits")
    for shape, rows, columns in (
        ((1, 3, 300, 400), 150, 130),
        ((2, 5, 40, 30), 260, 310),
        ((1, 1, 7, 9), 900, 800),
    ):
        image = rand(*shape).contiguous(memory_format=layout)
        inputs = {
            "image": image,
            first: rand(len(image), columns, low=-1.1, high=1.1),
            second: rand(len(image), rows, low=-1.1, high=1.1),
        }

        upstream = torch.randn_like(function(**inputs))
        threads = torch.get_num_threads()
        found = []
        try:
            for count in (1, 2, 2, 3):
                torch.set_num_threads(count)
                result, grads = gradients(function, inputs, list(inputs), upstream)
                found.append([result, *grads.values()])
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# ---- far apart in memory -------------------------------------------------------------------------------


@both_ways
def test_strides_beyond_32_bits(antialias):
    """The memory between is reserved, not touched."""
    stride = 1_100_000_000
    memory = torch.empty(2 * stride + 4096, dtype=torch.uint8)
    x, y = exact_places(3, 11, high=1.1), exact_places(3, 6, high=1.1)

    def run(image, x=x, y=y):
        return pyops.separable_grid_sample(image, x, y, antialias=antialias)

    plain = (rand(1, 3, 5, 7) * 255).byte()
    for strides in ((0, stride, 64, 1), (0, 64, stride // 4, 1), (0, 1, 640, stride // 6)):
        image = memory.as_strided((1, 3, 5, 7), strides)
        image.copy_(plain)
        assert torch.equal(run(image, x[:1], y[:1]), run(plain, x[:1], y[:1]))
    image = memory.as_strided((3, 3, 5, 7), (stride, 64 * 8, 64, 1))
    image.copy_(plain.expand(3, -1, -1, -1))
    assert torch.equal(run(image), run(plain.expand(3, -1, -1, -1)))
    # Coordinates and gradients too: rows of 2^31 bytes apart, then 2^31 elements.
    for dtype in (torch.float16, torch.bfloat16):
        far = torch.empty(2 * stride + 4096, dtype=dtype).as_strided((3, 11), (stride, 1)).copy_(x)
        assert torch.equal(
            run(plain.expand(3, -1, -1, -1), x=far), run(plain.expand(3, -1, -1, -1), x=x.to(dtype))
        )
    grad = torch.randn(3, 3, 6, 11)
    far = (
        torch.empty(2 * stride + 4096, dtype=torch.float32)
        .as_strided(grad.shape, (stride, 66, 11, 1))
        .copy_(grad)
    )
    image = rand(3, 3, 5, 7)
    options = (False, False, antialias, True, True, True)
    found, expected = (
        torch.ops.pyops.separable_grid_sample_backward(g, image, x, y, *options) for g in (far, grad)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("dtype", (torch.uint8, torch.float16))
def test_images_of_more_elements_than_32_bits(antialias, layout, dtype, device):
    """Both ends and the middle of an image of more than 2^31 values; of a float image, the gradient too."""
    side = 27_000
    needed = 3 * side * side * dtype.itemsize * (1 if dtype == torch.uint8 else 2) + 2**30
    require_free(needed, device)
    image = torch.empty((1, 3, side, side), dtype=dtype, memory_format=layout, device=device).zero_()
    local = pixel_centres(4, False, torch.float64)[None].to(device)
    blocks = [slice(at, at + 4) for at in (0, side // 2, side - 4)]
    options = dict(padding_mode="border", antialias=antialias)
    flags = (False, True, antialias, True, False, False)
    for block in blocks:
        tile = (rand(1, 3, 4, 4) * 255).to(device, dtype)
        image[:, :, block, block] = tile
        there = pixel_centres(side, False, torch.float64)[None, block].to(device)
        result = pyops.separable_grid_sample(image, there, there, **options)
        assert torch.equal(result, pyops.separable_grid_sample(tile, local, local, **options))
        if dtype == torch.float16:
            backward = torch.ops.pyops.separable_grid_sample_backward
            upstream = torch.randn(1, 3, 4, 4).to(device, torch.half)
            expected, _, _ = backward(upstream, tile, local, local, *flags)
            grad, _, _ = backward(upstream, image, there, there, *flags)
            for other in blocks:
                mine = expected if other is block else torch.zeros_like(expected)
                assert torch.equal(grad[:, :, other, other], mine)


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_results_of_more_elements_than_32_bits(antialias, layout, device):
    """A small image at 2^31 places and more: both ends and the middle are what they are by themselves."""
    side = 27_000
    require_free(4 * 2**30, device)
    image = (rand(1, 3, 50, 60) * 255).byte().to(device).contiguous(memory_format=layout)
    x, y = (torch.linspace(*ends, side, device=device)[None] for ends in ((-1.1, 1.1), (1, -1)))
    result = pyops.separable_grid_sample(image, x, y, antialias=antialias)
    for at in (0, side // 2, side - 6):
        rows = slice(max(at - 1, 0), at + 7)  # a neighbour more, for the bounds of cells
        part = pyops.separable_grid_sample(image, x, y[:, rows], antialias=antialias)
        inner = slice(1 if at else 0, 6)
        expected = part[:, :, inner]
        assert torch.equal(result[:, :, rows][:, :, inner], expected)
