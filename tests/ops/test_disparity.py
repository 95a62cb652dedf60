"""Upsampling a disparity by context, and warping by it: the contract on its cases."""

from __future__ import annotations

import contract
import torch
from disparities import (
    FLOATS,
    LEVELS,
    make_mixed,
    make_upsample,
    make_warp,
    make_warp_float,
    near_pixels,
    positions,
)

import pyops
from pyops import reference
from pyops.testing import Invalid, OpCase


def poison_image(inputs, value):
    """One pixel in the middle of the last image."""
    image = inputs["image"].clone()
    *_, height, width = image.shape
    image[-1, 0, height // 2, width // 2] = value
    below = positions(inputs).clamp(0, width - 1).floor()[-1, 0, height // 2]
    mask = torch.zeros(image.shape, dtype=torch.bool)
    mask[-1, 0, height // 2] = ((below == width // 2) | (below + 1 == width // 2)).cpu()
    return {**inputs, "image": image}, mask.to(image.device)


def poison_disparity(inputs, value):
    """One coarse pixel."""
    disparity = inputs["disparity"].clone()
    disparity[-1, 0, 1, 1] = value
    scale = inputs["weights"].shape[2] // disparity.shape[2]
    mask = torch.zeros(len(disparity), 1, *inputs["weights"].shape[2:], dtype=torch.bool)
    mask[-1, 0, : 3 * scale, : 3 * scale] = True
    return {**inputs, "disparity": disparity}, mask.to(disparity.device)


# ---- wrong calls ---------------------------------------------------------------------------------------


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid_upsample(inputs):
    disparity, weights = inputs["disparity"], inputs["weights"]
    batch, _, height, width = disparity.shape
    return [
        wrong("no tensor", TypeError, "disparity", "torch.Tensor", "list", disparity=[1.0]),
        wrong("no tensor", TypeError, "weights", "torch.Tensor", "NoneType", weights=None),
        wrong("dtype", TypeError, "disparity", "float32", "int64", disparity=disparity.long()),
        wrong("dtype", TypeError, "weights", "float32", "uint8", weights=weights.byte()),
        wrong("rank", ValueError, "disparity", "[B, 1, h, w]", str([batch, height, width]), disparity=disparity[:, 0]),
        wrong("two channels", ValueError, "disparity", "[B, 1, h, w]", disparity=disparity.expand(-1, 2, -1, -1)),
        wrong("no row", ValueError, "disparity", str([batch, 1, 0, width]), disparity=disparity[:, :, :0]),
        wrong("no column", ValueError, "disparity", str([batch, 1, height, 0]), disparity=disparity[..., :0]),
        wrong("rank", ValueError, "weights", f"[B={batch}, 9,", weights=weights[0]),
        wrong("channels", ValueError, "weights", "9", f"[{batch}, 8,", weights=weights[:, :8]),
        wrong("batch", ValueError, "weights", f"[B={batch}", weights=weights[:1].expand(batch + 1, -1, -1, -1)),
        wrong("too small", ValueError, "weights", f"{height} x {width}", weights=weights[:, :, : height - 1]),
        wrong("no multiple", ValueError, "weights", "integer", weights=weights[:, :, :-1]),
        wrong("no multiple", ValueError, "weights", "integer", weights=weights[..., :-1]),
        wrong("two factors", ValueError, "weights", "integer", weights=weights[..., :width]),
        wrong("device", ValueError, "weights", "device", "meta", weights=weights.to("meta")),
    ]  # fmt: skip


def invalid_warp(inputs):
    image, disparity = inputs["image"], inputs["disparity"]
    shape = str(list(disparity.shape))
    return [
        wrong("no tensor", TypeError, "image", "torch.Tensor", "list", image=[1.0]),
        wrong("no tensor", TypeError, "disparity", "torch.Tensor", "float", disparity=1.0),
        wrong("dtype", TypeError, "image", "uint8", "int32", image=image.int()),
        wrong("dtype", TypeError, "disparity", "float32", "uint8", disparity=disparity.byte()),
        wrong("rank", ValueError, "image", "[B, C, H, W]", str(list(image[0].shape)), image=image[0]),
        wrong("no channel", ValueError, "image", "above 0", image=image[:, :0]),
        wrong("no row", ValueError, "image", "above 0", image=image[:, :, :0]),
        wrong("no column", ValueError, "image", "above 0", image=image[..., :0]),
        wrong("too wide", ValueError, "image", "2^24", image=image[..., :1].expand(-1, -1, -1, 2**24 + 1)),
        wrong("rank", ValueError, "disparity", "[B=", disparity=disparity[:, 0]),
        wrong("channels", ValueError, "disparity", "[B=", disparity=disparity.expand(-1, 2, -1, -1)),
        wrong("batch", ValueError, "disparity", shape.replace(f"[{len(image)}", "[1"), disparity=disparity[:1]),
        wrong("rows", ValueError, "disparity", "H=", disparity=disparity[:, :, 1:]),
        wrong("columns", ValueError, "disparity", "W=", disparity=disparity[..., 1:]),
        wrong("device", ValueError, "disparity", "device", "meta", disparity=disparity.to("meta")),
    ]  # fmt: skip


# ---- cases ---------------------------------------------------------------------------------------------


def upsample_case(name, make):
    return OpCase(
        name=f"context_upsample{name}",
        function=pyops.context_upsample,
        reference=reference.context_upsample,
        make_inputs=make,
        differentiable=("disparity", "weights"),
        dtypes=FLOATS,
        shapes=((2, 9, 27, 4), (1, 5, 7, 3), (1, 1, 1, 5), (2, 6, 11, 1), (1, 1, 2, 37), (1, 2, 300, 2), (0, 3, 4, 2)),
        small=((2, 4, 5, 3), (3, 5, 8, 2)),
        tiny=(2, 2, 3, 2),
        poison=poison_disparity,
        invalid=invalid_upsample,
    )  # fmt: skip


def warp_case(name, make):
    return OpCase(
        name=f"disparity_warp{name}",
        function=pyops.disparity_warp,
        reference=reference.disparity_warp,
        make_inputs=make,
        differentiable=("image", "disparity"),
        dtypes=(*FLOATS, *LEVELS),
        shapes=((2, 3, 17, 190), (1, 1, 5, 9), (3, 2, 4, 1), (1, 17, 2, 8), (1, 2, 3, 2), (0, 3, 4, 5)),
        small=((2, 3, 7, 12), (3, 5, 8, 9)),
        tiny=(2, 2, 3, 4),
        near_discontinuity=near_pixels,
        poison=poison_image,
        invalid=invalid_warp,
    )


CASES = [
    upsample_case("", make_upsample),
    upsample_case("-mixed", make_mixed),
    warp_case("", make_warp),
    warp_case("-float", make_warp_float),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- any call at all -----------------------------------------------------------------------------------
