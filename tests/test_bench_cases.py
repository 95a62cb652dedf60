"""What the benchmarks compare does the same work, and a contestant that does other work is found out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from benches import CPU, assert_compiled_once, contestants, disagreeing, matches

from bench import case as cases
from bench import inputs
from bench.models.cotf import SMALL_FLOPS, WEIGHT_BYTES, CoTF
from bench.ops.modulation import MULTIPLY_ADDS, Modulation
from bench.ops.sampling import Sampling
from bench.peers import cotf as cotf_peers
from bench.peers import modulation as modulation_peers
from bench.peers import sampling as sampling_peers

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


def test_cotf_contestants_agree_on_halves():
    assert disagreeing(replace(PHOTO, dtype=torch.float16), cotf_peers.PEERS) == []


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
    ],
    ids=lambda value: value.title if isinstance(value, cases.Case) else value.__name__,
)
def test_copies_of_the_inputs_share_a_compilation(case, build, monkeypatch):
    assert_compiled_once(case, build, monkeypatch)


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
                # Of large graphs plain PyTorch makes nothing in any time that one would wait.
                hopeless = op.name in ("geodesic", "isomap") and case.points >= 2000
                none = hopeless or "tetrahedral" in case.words
                assert len(stock) == 1 or (none and not stock), f"{op.name}: {case.title}"
