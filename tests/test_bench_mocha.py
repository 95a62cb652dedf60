"""What the benchmark of MoChaStereo compares does the same work, and other work is found out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # bench is not installed

import pyops
from bench import case as cases
from bench import run
from bench.models.mocha import WEIGHTS, Mocha, _flops
from bench.peers.mocha import PEERS
from pyops import reference

CPU = torch.device("cpu")
CASE = Mocha(shape=(40, 96), iters=3, max_disparity=64)
native = pytest.mark.skipif(
    not hasattr(pyops, "geometry_lookup"), reason="operators of stereo matching are missing"
)


@pytest.fixture(scope="module")
def work():
    x = CASE.inputs(CPU)
    return x, CASE.reference(x)


def matches(result, expected) -> bool:
    return run.check(cases.as_tensors(result), expected, CASE.tolerances())["match"]


@native
def test_contestants_agree(work):
    x, expected = work
    with torch.inference_mode():
        for build in CASE.ours(CPU).values():
            assert matches(build(x).call(), expected)


def test_peers_agree(work):
    x, expected = work
    with torch.inference_mode():
        for peer in PEERS.of(CASE, CPU):
            assert matches(peer.contestant(CASE, x).call(), expected)


WRONG = {
    "groupwise_correlation": lambda right: lambda left, other, *how: right(other, left, *how),
    "camp_conv": lambda right: lambda motif, *others: right(motif.flip(1), *others),
    "constant_highpass": lambda right: lambda features: features,
    "corr1d_pyramid": lambda right: lambda left, other, levels, **how: right(other, left, levels, **how),
    "geometry_lookup": lambda right: lambda v, p, disparity, radius: right(v, p, disparity + 1, radius),
    "context_upsample": lambda right: lambda disparity, weights: right(disparity, weights.flip(1)),
    "disparity_warp": lambda right: lambda image, disparity: right(image, disparity + 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_work_is_found_out(work, name):
    x, expected = work
    ops = SimpleNamespace(**{n: getattr(reference, n) for n in reference.__all__})
    setattr(ops, name, WRONG[name](getattr(ops, name)))
    with torch.inference_mode():
        assert not matches(CASE.task(ops, x)(), expected)


def test_work_is_counted():
    from pyops.models import MoChaStereo

    assert sum(p.numel() for p in MoChaStereo().parameters()) == WEIGHTS
    one, two, three = (_flops(CASE.shape, iters, CASE.max_disparity) for iters in (1, 2, 3))
    assert three - two == two - one > 0
    assert two > 2 * (two - one), "features and volume are in it, too"
