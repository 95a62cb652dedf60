"""Disparities, and what to upsample and warp by them, for tests."""

from __future__ import annotations

import torch

from pyops import reference
from pyops.testing import in_double

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LEVELS = {torch.uint8: 255, torch.uint16: 65535}

# ---- inputs --------------------------------------------------------------------------------------------


def make_upsample(shape, dtype, device, generator):
    """Shapes are batch, coarse height and width, scale."""
    batch, height, width, scale = shape
    disparity = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64) * 8
    fine = (batch, 9, height * scale, width * scale)
    weights = torch.randn(fine, generator=generator, dtype=torch.float64).softmax(1)
    return {"disparity": disparity.to(dtype).to(device), "weights": weights.to(dtype).to(device)}


def make_mixed(shape, dtype, device, generator):
    """Weights as autocast leaves them, beside a float32 disparity."""
    inputs = make_upsample(shape, dtype, device, generator)
    return inputs if dtype == torch.float64 else {**inputs, "disparity": inputs["disparity"].float()}


def draw_image(shape, dtype, generator):
    image = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    return ((image.clamp(0, 1) * LEVELS[dtype]).round() if dtype in LEVELS else image).to(dtype)


def draw_disparity(batch, height, width, dtype, generator):
    """From a little beyond the left edge to a little beyond the right one, such that positions are exact.

    Odd multiples of 1 / 1024: with others, samples of integers would often lie half-way between two levels.
    """
    column = torch.arange(width, dtype=torch.float64)
    place = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64) * (width + 4) - 2
    return (((column - place) * 512).floor() + 0.5).div(512).to(dtype)


def make_warp(shape, dtype, device, generator, plain=None):
    """Shapes are batch, channels, height, width; the disparity is float32 beside integers or where `plain` says so."""
    batch, channels, height, width = shape
    floating = plain or (dtype if dtype.is_floating_point else torch.float32)
    image = draw_image((batch, channels, height, width), dtype, generator)
    disparity = draw_disparity(batch, height, width, floating, generator)
    return {"image": image.to(device), "disparity": disparity.to(device)}


def make_warp_float(shape, dtype, device, generator):
    return make_warp(
        shape, dtype, device, generator, torch.float64 if dtype == torch.float64 else torch.float32
    )


# ---- where results and gradients jump ------------------------------------------------------------------


def positions(inputs):
    width = inputs["image"].shape[3]
    return torch.arange(width, device=inputs["image"].device) - inputs["disparity"].double()


def near_pixels(inputs, name):
    image, position = inputs["image"], positions(inputs)
    if name is None:
        if image.is_floating_point():
            return None
        exact = reference.disparity_warp(
            **in_double({**inputs, "image": image.double() / LEVELS[image.dtype]})
        )
        return ((exact.clamp(0, 1) * LEVELS[image.dtype]).frac() - 0.5).abs() < 1e-6 * LEVELS[image.dtype]
    return ((position - position.round()).abs() < 1e-4).expand(image.shape) if name == "disparity" else None
