"""What the benchmarks compare does the same work, and a contestant that does other work is found out."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # bench is not installed; last, so that an installed pyops stays first

from bench import case as cases  # noqa: E402
from bench import inputs, run  # noqa: E402
from bench.models.cotf import SMALL_FLOPS, WEIGHT_BYTES, CoTF  # noqa: E402
from bench.ops.corr1d import Corr1d  # noqa: E402
from bench.ops.corr2d import Corr2d  # noqa: E402
from bench.ops.disparity import Upsample, Warp  # noqa: E402
from bench.ops.fps import Fps  # noqa: E402
from bench.ops.gather import Gather, Interpolate  # noqa: E402
from bench.ops.groupwise import Groupwise  # noqa: E402
from bench.ops.knn import Knn  # noqa: E402
from bench.ops.local_correlation import LocalCorrelation  # noqa: E402
from bench.ops.lookup import Lookup  # noqa: E402
from bench.ops.modulation import MULTIPLY_ADDS, Modulation  # noqa: E402
from bench.ops.motif import Camp, Highpass  # noqa: E402
from bench.ops.sampling import Sampling  # noqa: E402
from bench.ops.tpatches import TPatches  # noqa: E402
from bench.peers import corr1d as corr1d_peers  # noqa: E402
from bench.peers import corr2d as corr2d_peers  # noqa: E402
from bench.peers import cotf as cotf_peers  # noqa: E402
from bench.peers import disparity as disparity_peers  # noqa: E402
from bench.peers import fps as fps_peers  # noqa: E402
from bench.peers import gather as gather_peers  # noqa: E402
from bench.peers import groupwise as groupwise_peers  # noqa: E402
from bench.peers import knn as knn_peers  # noqa: E402
from bench.peers import local_correlation as local_correlation_peers  # noqa: E402
from bench.peers import lookup as lookup_peers  # noqa: E402
from bench.peers import modulation as modulation_peers  # noqa: E402
from bench.peers import motif as motif_peers  # noqa: E402
from bench.peers import sampling as sampling_peers  # noqa: E402
from bench.peers import tpatches as tpatches_peers  # noqa: E402

CPU = torch.device("cpu")


def matches(case, result, expected) -> bool:
    return run.check(cases.as_tensors(result), expected, case.tolerances())["match"]


def contestants(case, peers, x):
    """Ours and every installed peer that starts at once, by name."""
    yield from ((name, build(x)) for name, build in case.ours(CPU).items())
    for peer in peers.of(case, CPU):
        if peer.missing(quick=True) is None:
            yield peer.name, peer.contestant(case, x)


def disagreeing(case, peers) -> list[str]:
    x = case.inputs(CPU)
    expected = case.reference(x)
    with torch.inference_mode(not case.backward):
        rivals = list(contestants(case, peers, x))
        assert len(rivals) >= 2
        return [name for name, r in rivals if not matches(case, r.view(r.call()), expected)]


SMALL = Sampling(shape=(45, 62), size=(9, 17))
SAMPLING = [
    {},
    {"adaptive": True},
    {"backward": True},
    {"adaptive": True, "backward": True},
    {"antialias": True},
    {"adaptive": True, "antialias": True, "backward": True},
    {"antialias": True, "padding_mode": "border", "align_corners": True},
    {"align_corners": True, "padding_mode": "border"},
    {"align_corners": True, "backward": True},
    {"dtype": torch.uint8, "as_float": True},
    {"dtype": torch.float16},
    {"channels_last": True, "batch": 2},
    {"size": (90, 124), "batch": 2},
    {"shape": (1, 1), "size": (2, 2), "overhead": True},
]


@pytest.mark.parametrize("changes", SAMPLING, ids=lambda changes: "-".join(map(str, changes)) or "plain")
def test_sampling_contestants_agree(changes):
    assert disagreeing(replace(SMALL, **changes), sampling_peers.PEERS) == []


@pytest.mark.parametrize("changes", [c for c in SAMPLING if "overhead" not in c], ids=str)
def test_sampling_finds_out_other_work(changes):
    """Axes in the wrong order, the other convention, the other padding, no gradient: none passes for the same work."""
    case = replace(SMALL, **changes)
    x = case.inputs(CPU)
    expected = case.reference(x)

    def answer(case, x):
        function = sampling_peers.dense if case.antialias else sampling_peers.grid_sample
        return sampling_peers._task(case, function, x)()

    assert matches(case, answer(case, x), expected)
    other = replace(case, align_corners=not case.align_corners)
    assert not matches(case, answer(other, x), expected)
    padding = "zeros" if case.padding_mode == "border" else "border"
    if not case.align_corners:  # with it, no sample lies outside
        assert not matches(case, answer(replace(case, padding_mode=padding), x), expected)
    square = replace(case, size=(9, 9))
    swapped = square.inputs(CPU)
    right = square.reference(swapped)
    swapped = {**swapped, "x": swapped["y"], "y": swapped["x"]}
    assert not matches(square, answer(square, swapped), right)
    if case.backward:
        out, *grads = expected
        for i in range(3):
            wrong = [g * 1.01 if i == j else g for j, g in enumerate(grads)]
            assert not matches(case, [out, *wrong], expected)


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


SAMPLES = Fps(points=150, samples=40, batch=2)
GATHERED = Gather(points=30, queries=9, neighbours=4, channels=5, batch=2)
INTERPOLATED = Interpolate(points=30, queries=50, channels=5, batch=2)


@pytest.mark.parametrize("changes", ({}, {"dims": 5}, {"dtype": torch.float16}), ids=str)
def test_fps_contestants_agree(changes):
    case = replace(SAMPLES, **changes)
    assert disagreeing(case, fps_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    for other in (x["points"].flip(1), x["points"] * torch.tensor([3.0] + [1.0] * (case.dims - 1))):
        assert not matches(case, fps_peers.loop(other.to(case.dtype), case.samples), expected)


@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("case", (GATHERED, INTERPOLATED), ids=("gather", "interpolate"))
def test_gather_contestants_agree(case, backward):
    case = replace(case, backward=backward)
    assert disagreeing(case, gather_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    function = gather_peers.expanded if isinstance(case, Gather) else gather_peers.searched
    other = {**x, "values": x["values"].roll(1, 1)}
    assert not matches(case, case.task(function, other)(), expected)
    if backward:
        assert not matches(case, [expected[0], expected[1] * 1.01], expected)


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


NEIGHBOURS = [
    Knn(batch=2, queries=30, points=70, k=5),
    Knn(queries=60, points=60, k=5, offset=True),
    Knn(batch=2, queries=30, points=70, k=5, backward=True),
    Knn(queries=20, points=40, dims=40, k=2, dtype=torch.float16),
    Knn(queries=1, points=1, k=1, overhead=True),
]


@pytest.mark.parametrize("case", NEIGHBOURS, ids=lambda case: case.name)
def test_knn_contestants_agree(case):
    found = disagreeing(case, knn_peers.PEERS)
    assert found == (["torch.cdist by products, topk", "faiss flat"][: len(found)] if case.offset else [])


def test_knn_finds_out_other_work():
    """Neighbours of lower rank, those of another cloud, a distance that is not theirs."""
    case = NEIGHBOURS[0]
    x = case.inputs(CPU)
    expected, result = case.reference(x), knn_peers.nearest(x["query"], x["points"], 6)
    right = [t[..., :5] for t in result]
    assert matches(case, case.checked(x, *right), expected)
    for wrong in (
        [t[..., 1:] for t in result],
        [right[0], right[1].flip(0)],
        [right[0] * 1.01, right[1]],
        [right[0], right[1].roll(1, 1)],
    ):
        assert not matches(case, case.checked(x, *wrong), expected)


CHAINS = [
    TPatches(frames=3, points=60, queries=9, k=5, batch=2),
    TPatches(frames=3, points=60, queries=9, k=5, batch=2, still=False),
    TPatches(frames=1, points=1, queries=1, k=1, batch=1, overhead=True),
]


@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)
def test_tpatches_contestants_agree(case):
    assert disagreeing(case, tpatches_peers.PEERS) == []


@pytest.mark.parametrize("case", [c for c in CHAINS if not c.overhead], ids=lambda case: case.name)
def test_tpatches_finds_out_other_work(case):
    """Frames in another order, chains that all go one way, one neighbour less, roots of the distances."""
    x = case.inputs(CPU)
    expected = case.reference(x)

    def work(x):
        return tpatches_peers.both(case, x, tpatches_peers.differences)

    assert matches(case, work(x), expected)
    indices, distances = expected
    for other in (
        work({**x, "points": x["points"].flip(1)}),
        work({**x, "first": x["last"], "last": x["first"]}),
        [indices.roll(1, -1), distances],
        [indices, distances.sqrt()],
    ):
        assert not matches(case, other, expected)


def test_logits_keep_off_the_pixels():
    def nearest(off_pixels, seed):
        logits = inputs.warp_logits(2, 256, 3840, off_pixels=off_pixels, seed=seed)
        assert logits.shape == (2, 255)
        position = ((inputs.warp_vertices(logits) + 1) * 3840 - 1)[:, 1:-1] / 2
        return (position - position.round()).abs().min()

    assert min(nearest(False, seed) for seed in range(4)) < inputs.MARGIN
    assert min(nearest(True, seed) for seed in range(4)) > inputs.MARGIN


def test_images_are_not_shared():
    first = inputs.photo(1, 8, 8)
    first.zero_()
    assert inputs.photo(1, 8, 8).min() > 0


PICTURE = Modulation(shape=(37, 52))
MODULATION = [
    {"headline": True},
    {"dtype": torch.uint8},
    {"dtype": torch.float16},
    {"channels_last": True},
]


@pytest.mark.parametrize("changes", MODULATION, ids=str)
def test_modulation_contestants_agree(changes):
    assert disagreeing(replace(PICTURE, **changes), modulation_peers.PEERS) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_modulation_finds_out_other_work(dtype):
    """Every tensor matters: with weights so chosen that a layer does nothing, a kernel could leave it out."""
    case = replace(PICTURE, dtype=dtype)
    x = case.inputs(CPU)
    expected = case.reference(x)
    result = cases.as_tensors(case.task(modulation_peers.layers, x)())
    assert matches(case, result, expected)
    inside = (expected[0].double() > 0) & (expected[0].double() < (255 if dtype == torch.uint8 else 1))
    assert inside.double().mean() > 0.9, "colours that are clamped hide what differs"
    if dtype == torch.float32:
        for name, tensor in x.items():
            other = tensor.mT if name == "lut" else tensor.flip(1) if name == "query" else tensor * 1.05
            assert not matches(case, case.task(modulation_peers.layers, {**x, name: other})(), expected), name


PHOTO = CoTF(shape=(40, 56))


@cache
def photo():
    x = PHOTO.inputs(CPU)
    return x, PHOTO.reference(x)


def test_cotf_contestants_agree():
    x, expected = photo()
    with torch.inference_mode():
        rivals = list(contestants(replace(PHOTO, headline=True), cotf_peers.PEERS, x))
        assert len(rivals) >= 3
        assert [name for name, r in rivals if not matches(PHOTO, r.view(r.call()), expected)] == []


def test_cotf_contestants_agree_on_integers():
    assert disagreeing(replace(PHOTO, dtype=torch.uint8), cotf_peers.PEERS) == []


WRONG = {
    "separable_grid_sample": lambda right: partial(right, align_corners=True),
    "adaptive_grid_sample": lambda right: lambda image, x, y, **how: right(image, y, x, **how),
    "fuse_luts": lambda right: lambda weights, basis: right(weights.flip(1), basis),
    "relation_aware_modulation": lambda right: lambda *tensors: right(*tensors) + 2e-4,
}


@pytest.mark.parametrize("name", WRONG)
def test_cotf_finds_out_other_work(name):
    """With the weights of a new model half of it could be left out."""
    x, expected = photo()
    ops = SimpleNamespace(**vars(cotf_peers.plain_ops()))
    setattr(ops, name, WRONG[name](getattr(ops, name)))
    with torch.inference_mode():
        assert not matches(PHOTO, PHOTO.model(ops, {**x, "models": {}})(x["image"]), expected)


@pytest.mark.parametrize(
    "case, build",
    [
        (PHOTO, cotf_peers.compiled),
        (replace(SMALL, adaptive=True), sampling_peers.compiled),
        (replace(SMALL, antialias=True), sampling_peers.dense_compiled),
        (replace(SMALL, antialias=True, adaptive=True), sampling_peers.dense_compiled),
        (PICTURE, modulation_peers.compiled),
        (VOLUME, groupwise_peers.compiled),
        (STEREO[0], disparity_peers.compiled_upsample),
        (STEREO[4], disparity_peers.compiled_warp),
        (MOTIF[0], motif_peers.compiled_highpass),
        (MOTIF[4], motif_peers.compiled_camp),
    ],
    ids=lambda value: value.title if isinstance(value, cases.Case) else value.__name__,
)
def test_copies_of_the_inputs_share_a_compilation(case, build, monkeypatch):
    """On a GPU a sweep goes over many: each compiling anew would end in the limit of recompilations, uncompiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for peers in (disparity_peers, groupwise_peers, motif_peers, sampling_peers):
        peers._compiled.cache_clear()
    torch.compiler.reset()
    first = case.inputs(CPU)
    copies = [first, run._clone(first)]
    with torch.inference_mode():
        results = []
        for x in copies:
            with torch._dynamo.config.patch(error_on_recompile=bool(results)):
                results.append(build(case, x)())
    assert torch.equal(*results)
    for peers in (disparity_peers, groupwise_peers, motif_peers, sampling_peers):
        peers._compiled.cache_clear()


def test_work_is_counted_as_torch_counts_it():
    from torch.utils.flop_counter import FlopCounterMode

    x, _ = photo()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        cotf_peers.plain(PHOTO, x)()
    assert counter.get_total_flops() == SMALL_FLOPS + 2 * MULTIPLY_ADDS * PHOTO.pixels
    assert sum(t.numel() * t.itemsize for t in x["state"].values()) == WEIGHT_BYTES


def test_definition_stays_in_double_where_that_is_affordable():
    big = replace(PICTURE, shape=(1025, 1024))
    assert PICTURE.reference(PICTURE.inputs(CPU))[0].dtype == torch.float64
    from bench.ops.modulation import definition_dtype

    assert definition_dtype(big.pixels, CPU) == torch.float32
    assert definition_dtype(big.pixels, torch.device("cuda")) == torch.float64


def test_models_come_after_operators():
    found = cases.load_ops()
    kinds = [op.kind for op in found]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"op", "model"}
    assert [op.name for op in cases.load_ops(["cotf", "sampling"])] == ["cotf", "sampling"]
    for op in found:
        assert any(case.headline for case in op.cases) and any(case.quick for case in op.cases)
        for case in op.cases:
            for device in map(torch.device, case.devices):
                stock = [peer for peer in op.peers.of(case, device) if peer.stock]
                assert len(stock) == 1 or "tetrahedral" in case.words, f"{op.name}: {case.title}"
