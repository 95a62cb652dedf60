"""Benchmarks of stereo matching: contestants do the same work, and other work is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benches import CPU, assert_compiled_once, disagreeing, matches

from bench.ops.corr1d import Corr1d
from bench.ops.corr2d import Corr2d
from bench.ops.disparity import Upsample, Warp
from bench.ops.groupwise import Groupwise
from bench.ops.local_correlation import LocalCorrelation
from bench.ops.lookup import Lookup
from bench.ops.motif import Camp, Highpass
from bench.peers import corr1d as corr1d_peers
from bench.peers import corr2d as corr2d_peers
from bench.peers import disparity as disparity_peers
from bench.peers import groupwise as groupwise_peers
from bench.peers import local_correlation as local_correlation_peers
from bench.peers import lookup as lookup_peers
from bench.peers import motif as motif_peers

VOLUME = Groupwise(shape=(5, 23), channels=12, disparities=9, groups=3)
VOLUMES = [
    {},
    {"backward": True},
    {"normalize": True},
    {"normalize": True, "backward": True},
    {"dtype": torch.bfloat16},
    {"channels_last": True, "batch": 2, "backward": True},
    {"shape": (1, 1), "disparities": 1, "overhead": True},
]


@pytest.mark.parametrize("changes", VOLUMES, ids=lambda changes: "-".join(map(str, changes)) or "plain")
def test_groupwise_contestants_agree(changes):
    assert disagreeing(replace(VOLUME, **changes), groupwise_peers.PEERS) == []


@pytest.mark.parametrize("changes", [c for c in VOLUMES if "overhead" not in c], ids=str)
def test_groupwise_finds_out_other_work(changes):
    """Views exchanged, the other division into groups, sums or cosines for means, a gradient left out."""
    case = replace(VOLUME, **changes)
    x = case.inputs(CPU)
    expected = case.reference(x)
    assert matches(case, case.task(groupwise_peers.slices, x)(), expected)
    exchanged = {**x, "left": x["right"], "right": x["left"]}
    mixed = {**x, "left": x["left"].roll(1, 1), "right": x["right"].roll(1, 1)}
    for other in (exchanged, mixed):
        assert not matches(case, case.task(groupwise_peers.slices, other)(), expected)
    cosine = replace(case, normalize=not case.normalize)
    assert not matches(case, cosine.task(groupwise_peers.slices, x)(), expected)
    if case.backward:
        assert not matches(case, [expected[0], torch.zeros_like(expected[1]), expected[2]], expected)
        assert not matches(case, [expected[0], expected[1], expected[2] * 1.01], expected)


COSTS = Lookup(shape=(5, 23), disparities=12, channels=3, levels=2, radius=2)
COSTS_CHANGES = [
    {},
    {"backward": True},
    {"dtype": torch.float16},
    {"geometry": True},
    {"geometry": True, "backward": True},
]
ROWS = Corr1d(shape=(4, 23), channels=12, levels=2, radius=2)
ROWS_CHANGES = [{}, {"backward": True}, {"on_demand": True}, {"on_demand": True, "backward": True}]


PLANES = Corr2d(shape=(9, 14), channels=12, levels=2, radius=2)
PLANES_CHANGES = [
    {"kind": kind, "backward": both} for kind in ("lookup", "pyramid", "on demand") for both in (False, True)
]


@pytest.mark.parametrize("changes", COSTS_CHANGES, ids=str)
def test_lookup_contestants_agree(changes):
    assert disagreeing(replace(COSTS, **changes), lookup_peers.PEERS) == []


@pytest.mark.parametrize("changes", ROWS_CHANGES, ids=str)
def test_corr1d_contestants_agree(changes):
    assert disagreeing(replace(ROWS, **changes), corr1d_peers.PEERS) == []


@pytest.mark.parametrize("changes", PLANES_CHANGES, ids=str)
def test_corr2d_contestants_agree(changes):
    assert disagreeing(replace(PLANES, **changes), corr2d_peers.PEERS) == []


@pytest.mark.parametrize(
    "case",
    [
        *(replace(COSTS, **c) for c in COSTS_CHANGES),
        *(replace(ROWS, **c) for c in ROWS_CHANGES),
        *(replace(PLANES, **c) for c in PLANES_CHANGES),
    ],
    ids=lambda case: case.title,
)
def test_lookups_find_out_other_work(case):
    """Another place, other costs or views, a result or a gradient that is a little off."""
    x = case.inputs(CPU)
    expected = case.reference(x)
    others = [
        {**x, name: t.flip(-1)} for name, t in x.items() if t is not None and not name.startswith("grad")
    ]
    assert others and not any(matches(case, case.reference(other), expected) for other in others)
    for i in range(len(expected)):
        assert not matches(case, [t * (1 + 0.01 * (i == k)) for k, t in enumerate(expected)], expected)


FLOW = LocalCorrelation(shape=(7, 23), channels=12, radius=2)
FLOWS = [
    {},
    {"backward": True},
    {"dilation": 2},
    {"dilation": 3, "backward": True},
    {"dtype": torch.bfloat16},
    {"channels_last": True, "batch": 2, "backward": True},
    {"shape": (1, 1), "radius": 0, "overhead": True},
]


@pytest.mark.parametrize("changes", FLOWS, ids=lambda changes: "-".join(map(str, changes)) or "plain")
def test_local_correlation_contestants_agree(changes):
    assert disagreeing(replace(FLOW, **changes), local_correlation_peers.PEERS) == []


@pytest.mark.parametrize("changes", [c for c in FLOWS if "overhead" not in c], ids=str)
def test_local_correlation_finds_out_other_work(changes):
    """Images exchanged, displacements dx-major, means for sums, another dilation, a gradient left out."""
    case = replace(FLOW, **changes)
    x = case.inputs(CPU)
    expected = case.reference(x)
    slices = local_correlation_peers.slices
    assert matches(case, case.task(slices, x)(), expected)
    exchanged = {**x, "first": x["second"], "second": x["first"]}
    assert not matches(case, case.task(slices, exchanged)(), expected)
    assert not matches(case, replace(case, dilation=case.dilation + 1).task(slices, x)(), expected)

    def columns_first(first, second, radius, *, dilation):
        volume = slices(first, second, radius, dilation=dilation)
        return volume.unflatten(1, (5, 5)).transpose(1, 2).flatten(1, 2)

    def means(first, second, radius, *, dilation):
        return slices(first, second, radius, dilation=dilation) / case.channels

    for other in (columns_first, means):
        assert not matches(case, case.task(other, x)(), expected)
    if case.backward:
        assert not matches(case, [expected[0], torch.zeros_like(expected[1]), expected[2]], expected)
        assert not matches(case, [expected[0], expected[1], expected[2] * 1.01], expected)


STEREO = [
    Upsample(shape=(5, 7), scale=3),
    Upsample(shape=(5, 7), backward=True),
    Upsample(shape=(5, 7), dtype=torch.bfloat16, batch=2),
    Upsample(shape=(1, 1), scale=1, overhead=True),
    Warp(shape=(9, 90)),
    Warp(shape=(9, 90), channels=5, backward=True, batch=2),
    Warp(shape=(9, 90), dtype=torch.uint8, channels_last=True),
    Warp(shape=(9, 90), dtype=torch.float16),
    Warp(shape=(1, 1), overhead=True),
]


@pytest.mark.parametrize("case", STEREO, ids=lambda case: case.name)
def test_disparity_contestants_agree(case):
    assert disagreeing(case, disparity_peers.PEERS) == []


@pytest.mark.parametrize("case", [c for c in STEREO if not c.overhead], ids=lambda case: case.name)
def test_disparity_finds_out_other_work(case):
    """Neighbours in the other order, no weights, a shift the other way, none at all, a gradient left out."""
    x = case.inputs(CPU)
    expected = case.reference(x)
    function = disparity_peers.interpolated if isinstance(case, Upsample) else disparity_peers.grid_sample
    assert matches(case, case.task(function, x)(), expected)
    if isinstance(case, Upsample):
        others = {"weights": x["weights"].flip(1)}, {"weights": torch.full_like(x["weights"], 1 / 9)}
    else:
        others = {"disparity": -x["disparity"]}, {"disparity": torch.zeros_like(x["disparity"])}
    for other in others:
        assert not matches(case, case.task(function, {**x, **other})(), expected)
    for i in range(1, len(expected)):
        left_out = [torch.zeros_like(t) if i == k else t for k, t in enumerate(expected)]
        assert not matches(case, left_out, expected)


MOTIF = [
    Highpass(shape=(7, 11), channels=9),
    Highpass(shape=(7, 11), channels=9, backward=True, batch=2),
    Highpass(shape=(7, 11), channels=9, dtype=torch.float16, channels_last=True),
    Highpass(shape=(1, 1), channels=1, overhead=True),
    Camp(shape=(7, 11), channels=9),
    Camp(shape=(7, 11), channels=9, motifs=3, backward=True, batch=2),
    Camp(shape=(7, 11), channels=9, channels_last=True),
    Camp(shape=(1, 1), channels=1, motifs=1, overhead=True),
]


@pytest.mark.parametrize("case", MOTIF, ids=lambda case: case.name)
def test_motif_contestants_agree(case):
    assert disagreeing(case, motif_peers.PEERS) == []


@pytest.mark.parametrize("case", [c for c in MOTIF if not c.overhead], ids=lambda case: case.name)
def test_motif_finds_out_other_work(case):
    """Channels in the other order, kernels without one tap, sums of a channel alone, a gradient left out."""
    x = case.inputs(CPU)
    expected = case.reference(x)
    if isinstance(case, Highpass):
        function, others = motif_peers.pooled, [{"features": x["features"].flip(1)}]
    else:
        function, kernel = motif_peers.weighted_windows, x["kernel"].clone()
        kernel[:, 2, 0, 1] = 0
        others = [{"kernel": kernel}, {"kernel": x["kernel"].flip(1)}, {"motif": x["motif"].flip(1)}]
    assert matches(case, case.task(function, x)(), expected)
    for other in others:
        assert not matches(case, case.task(function, {**x, **other})(), expected)
    if isinstance(case, Highpass):

        def alone(features):
            return features - torch.nn.functional.avg_pool2d(features.float(), 3, 1, 1).to(features.dtype)

        assert not matches(case, case.task(alone, x)(), expected)
    for i in range(1, len(expected)):
        left_out = [torch.zeros_like(t) if i == k else t for k, t in enumerate(expected)]
        assert not matches(case, left_out, expected)


@pytest.mark.parametrize(
    "case, build",
    [
        (VOLUME, groupwise_peers.compiled),
        (STEREO[0], disparity_peers.compiled_upsample),
        (STEREO[4], disparity_peers.compiled_warp),
        (MOTIF[0], motif_peers.compiled_highpass),
        (MOTIF[4], motif_peers.compiled_camp),
    ],
    ids=lambda value: getattr(value, "title", getattr(value, "__name__", "")),
)
def test_copies_of_the_inputs_share_a_compilation(case, build, monkeypatch):
    assert_compiled_once(case, build, monkeypatch)
