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
from bench.models.mocha import WEIGHTS, Mocha, Update, _flops
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


@native
def test_updates_agree():
    case = Update(shape=(64, 96), max_disparity=64)
    x = case.inputs(CPU)
    expected = case.reference(x)

    def same(rival) -> bool:
        result = rival.view(rival.call())
        return run.check(result, expected, case.tolerances())["match"]

    with torch.inference_mode():
        peers = {peer.name: peer for peer in PEERS.of(case, CPU)}
        assert len(peers) == 2 and sum(peer.part for peer in peers.values()) == 1
        assert same(case.ours(CPU)["pyops"](x))
        assert all(same(peer.contestant(case, x)) for peer in peers.values())
        disparity, *hidden = expected
        assert not run.check([disparity + 1, *hidden], expected, case.tolerances())["match"]
        assert not run.check([disparity, *hidden[::-1]], expected, case.tolerances())["match"]
    assert case.flops == _flops(case.shape, 3, 64) - _flops(case.shape, 2, 64)
