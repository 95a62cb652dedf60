"""The drop-in modules against the reference and its autograd."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.testing import assert_close

from pyops import reference
from pyops.compat import ailut, trilinear

BATCH, SIZE, HEIGHT, WIDTH = 3, 5, 6, 9


def draw(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * (high - low) + low


def vertices() -> torch.Tensor:
    """`[BATCH, 3, SIZE]`, as AdaInt makes them: a softmax summed from 0."""
    steps = (draw(BATCH, 3, SIZE - 1) * 2).softmax(-1).double().cumsum(-1)
    return torch.cat([torch.zeros(BATCH, 3, 1), (steps / steps[..., -1:]).float()], -1)


def gradients(function, inputs):
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    weights = draw(*output.shape, low=-1)
    return output.detach(), torch.autograd.grad((output * weights.to(output)).sum(), leaves)


def assert_same(function, definition, *inputs):
    """Value and every gradient, against the reference in float64."""
    output, grads = gradients(function, inputs)
    expected, expected_grads = gradients(definition, [tensor.double() for tensor in inputs])
    assert_close(output.double(), expected, atol=1e-5, rtol=0)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad.double(), expected_grad, atol=1e-4, rtol=1e-4)


# ---- ailut --------------------------------------------------------------------------------------------


def test_ailut_transform():
    assert list(inspect.signature(ailut.ailut_transform).parameters) == ["img", "lut", "vertices"]
    image, lut = draw(BATCH, 3, HEIGHT, WIDTH), draw(BATCH, 3, SIZE, SIZE, SIZE)
    assert_same(
        ailut.ailut_transform,
        lambda img, lut, vertices: reference.lut3d(img, lut, vertices=vertices),
        *(image, lut, vertices()),
    )


def test_lut_transform():
    assert list(inspect.signature(ailut.lut_transform).parameters) == ["img", "lut"]
    image, lut = draw(BATCH, 3, HEIGHT, WIDTH), draw(BATCH, 3, SIZE, SIZE, SIZE)
    assert_same(ailut.lut_transform, reference.lut3d, image, lut)


# ---- trilinear ----------------------------------------------------------------------------------------


def sizes(lut, x):
    """The six numbers that the original's autograd function passes along."""
    dim = lut.shape[-1]
    return dim, dim**3, 1.000001 / (dim - 1), x.size(2), x.size(3), x.size(0)


def test_forward_writes_into_output():
    names = list(inspect.signature(trilinear.forward).parameters)
    assert names == ["lut", "x", "output", "dim", "shift", "binsize", "W", "H", "batch"]
    lut, x = draw(3, SIZE, SIZE, SIZE).requires_grad_(), draw(BATCH, 3, HEIGHT, WIDTH, low=-0.2, high=1.2)
    storage = torch.full((BATCH, 3, HEIGHT, 2 * WIDTH), 7.0)
    output = storage[..., :WIDTH]
    assert trilinear.forward(lut, x, output, *sizes(lut, x)) == 1
    assert_close(output, reference.lut3d(x, lut).detach(), atol=1e-5, rtol=0)
    assert (storage[..., WIDTH:] == 7).all() and not output.requires_grad


def test_backward_adds_to_lut_grad():
    names = list(inspect.signature(trilinear.backward).parameters)
    assert names == ["x", "x_grad", "lut_grad", "dim", "shift", "binsize", "W", "H", "batch"]
    lut, x = draw(3, SIZE, SIZE, SIZE).requires_grad_(), draw(BATCH, 3, HEIGHT, WIDTH)
    x_grad = draw(BATCH, 3, HEIGHT, WIDTH, low=-1)
    (expected,) = torch.autograd.grad(reference.lut3d(x, lut), lut, x_grad)
    lut_grad, kept = torch.ones(3, SIZE, SIZE, SIZE), x_grad.clone()
    with torch.no_grad():
        assert trilinear.backward(x, x_grad, lut_grad, *sizes(lut, x)) == 1
    assert_close(lut_grad, 1 + expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(x_grad, kept)


def test_the_original_autograd_function_runs_on_it():
    """A program written for the extension, with nothing but its import changed."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, lut, x):
            output = x.new_empty(x.size())
            assert trilinear.forward(lut, x, output, *sizes(lut, x)) == 1
            ctx.save_for_backward(lut, x)
            return output

        @staticmethod
        def backward(ctx, grad):
            lut, x = ctx.saved_tensors
            lut_grad = torch.zeros_like(lut)
            assert trilinear.backward(x, grad, lut_grad, *sizes(lut, x)) == 1
            return lut_grad, None

    x = draw(BATCH, 3, HEIGHT, WIDTH)
    assert_same(
        lambda lut: Function.apply(lut, x),
        lambda lut: reference.lut3d(x.to(lut), lut),
        draw(3, SIZE, SIZE, SIZE),
    )


def test_module():
    module = trilinear.TrilinearInterpolation()
    lut, x = draw(3, SIZE, SIZE, SIZE), draw(BATCH, 3, HEIGHT, WIDTH)
    assert module(lut, x)[0] is lut
    assert_same(lambda lut, x: module(lut, x)[1], lambda lut, x: reference.lut3d(x, lut), lut, x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.zeros(3, BATCH + 1, HEIGHT, WIDTH)}, "x: expected shape"),
        ({"output": torch.zeros(1, 3, HEIGHT, WIDTH)}, "output and its gradient: expected"),
        ({"dim": SIZE + 1}, "lut and its gradient: expected"),
        ({"shift": SIZE**2}, r"shift: expected dim \*\* 3"),
        ({"binsize": 1 / SIZE}, "binsize: expected"),
        ({"W": HEIGHT * 2}, "x: expected shape"),
        ({"batch": 1}, "x: expected shape"),
    ],
)
def test_wrong_sizes_are_refused(wrong, message):
    lut, x = draw(3, SIZE, SIZE, SIZE), draw(BATCH, 3, HEIGHT, WIDTH)
    names = ("dim", "shift", "binsize", "W", "H", "batch")
    numbers = dict(zip(names, sizes(lut, x), strict=True))
    with pytest.raises(ValueError, match=message):
        trilinear.forward(**{"lut": lut, "x": x, "output": torch.zeros_like(x), **numbers, **wrong})
