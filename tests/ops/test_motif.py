"""Motif channel attention: the contract on its cases."""

from __future__ import annotations

import contract
import torch
from motifs import FLOATS, make_camp, make_highpass

import pyops
from pyops import reference
from pyops.testing import Invalid, OpCase


def make_camp_positive(*args):
    """With kernels of one sign, an infinity meets none of the other sign, in whatever order sums are formed."""
    inputs = make_camp(*args)
    return {**inputs, "kernel": inputs["kernel"].abs()}


def around(mask, y, x):
    """Marks the window around a pixel of the last image."""
    mask[-1, ..., max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    return mask


def poison_highpass(inputs, value):
    features = inputs["features"].clone()
    features[-1, 1, 1, 2] = value
    return {"features": features}, around(torch.zeros_like(features, dtype=torch.bool), 1, 2)


def poison_camp(name):
    """A motif's pixel is in the window of all channels, a feature in that of its own channel and its neighbours."""

    def put(inputs, value):
        changed = inputs[name].clone()
        signs = bool((inputs["kernel"] < 0).any())
        changed[-1, 1, 1, 2] = float("nan") if signs else value
        mask = around(torch.zeros_like(inputs["features"], dtype=torch.bool), 1, 2)
        if name == "features":
            mask[:, 3:] = False
        return {**inputs, name: changed}, mask

    return put


# ---- wrong calls ---------------------------------------------------------------------------------------


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid_features(features):
    return [
        wrong("no tensor", TypeError, "features", "torch.Tensor", "list", features=[1.0]),
        wrong("dtype", TypeError, "features", "float32", "int32", features=features.int()),
        wrong("rank", ValueError, "features", "[B, C, H, W]", features=features[0]),
        wrong("no channels", ValueError, "features", "above 0", features=features[:, :0]),
        wrong("no rows", ValueError, "features", "above 0", features=features[:, :, :0]),
        wrong("no columns", ValueError, "features", "above 0", features=features[..., :0]),
    ]


def invalid_camp(inputs):
    motif, features, kernel = inputs["motif"], inputs["features"], inputs["kernel"]
    motifs = motif.shape[1]
    return [
        *invalid_features(features),
        wrong("no tensor", TypeError, "motif", "torch.Tensor", "NoneType", motif=None),
        wrong("no tensor", TypeError, "kernel", "torch.Tensor", "float", kernel=1.0),
        wrong("dtype", TypeError, "motif", "float32", "int64", motif=motif.long()),
        wrong("dtypes differ", TypeError, "motif", "float32", "float64", motif=motif.double()),
        wrong("dtypes differ", TypeError, "kernel", "float32", "float16", kernel=kernel.half()),
        wrong("rank", ValueError, "motif", "[B=", motif=motif[0]),
        wrong("batch", ValueError, "motif", f"[B={len(features)}", motif=motif[:1]),
        wrong("rows", ValueError, "motif", "H=", motif=motif[:, :, 1:]),
        wrong("columns", ValueError, "motif", "W=", motif=motif[..., 1:]),
        wrong("no motif", ValueError, "motif", "above 0", motif=motif[:, :0], kernel=kernel[:0]),
        wrong("motifs", ValueError, "kernel", f"[S={motifs}, 3, 3, 3]", kernel=kernel[1:]),
        wrong("rank", ValueError, "kernel", f"[S={motifs}, 3, 3, 3]", kernel=kernel[None]),
        wrong("size", ValueError, "kernel", "3, 3, 3", kernel=kernel[..., :1]),
        wrong("device", ValueError, "motif", "device", "meta", motif=motif.to("meta")),
        wrong("device", ValueError, "kernel", "device", "meta", kernel=kernel.to("meta")),
    ]


# ---- cases ---------------------------------------------------------------------------------------------


def camp_case(name, make, poisoned, dtypes):
    return OpCase(
        name=f"camp_conv{name}",
        function=pyops.camp_conv,
        reference=reference.camp_conv,
        make_inputs=make,
        differentiable=("motif", "features", "kernel"),
        dtypes=dtypes,
        # batch, channels, height, width, motifs
        shapes=(
            *((2, 24, 9, 53, 4), (1, 13, 40, 75, 3), (1, 1, 1, 1, 1), (3, 2, 1, 8, 2), (0, 4, 3, 9, 2)),
            *((1, 3, 2, 600, 1), (1, 300, 3, 35, 5), (1, 7, 5, 1, 2)),
        ),
        # no size is 3, or the kernel's sizes would seem to follow it
        small=((2, 6, 4, 11, 5), (4, 10, 5, 9, 2)),
        tiny=(1, 3, 2, 3, 2),
        poison=poison_camp(poisoned),
        invalid=invalid_camp,
    )


CASES = [
    OpCase(
        name="constant_highpass",
        function=pyops.constant_highpass,
        reference=reference.constant_highpass,
        make_inputs=make_highpass,
        differentiable=("features",),
        dtypes=FLOATS,
        shapes=(
            *((2, 24, 19, 53), (1, 70, 7, 130), (1, 1, 1, 1), (3, 5, 1, 8), (2, 3, 6, 1), (0, 4, 3, 9)),
            *((1, 24, 60, 147), (1, 2, 3, 2100)),
        ),
        small=((2, 6, 3, 11), (3, 10, 4, 9)),
        tiny=(1, 3, 2, 3),
        poison=poison_highpass,
        invalid=lambda inputs: invalid_features(inputs["features"]),
    ),
    camp_case("", make_camp, "motif", FLOATS),
    camp_case("-positive", make_camp_positive, "features", FLOATS[:1]),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- any call at all -----------------------------------------------------------------------------------
