"""MoChaStereo: sizes, iterations, gradients and operators; what it is made of against plain definitions."""

from __future__ import annotations

import contextlib
import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pyops.models import MoChaStereo, StereoLoss
from pyops.models.mocha_layers import MotifAttention
from pyops.models.mocha_pair import Pair
from torch.testing import assert_close

import pyops
from pyops import reference

SIZES = ((1, 1), (1, 40), (33, 5), (31, 65))
READY = all(hasattr(pyops, name) for name in ("camp_conv", "context_upsample", "geometry_lookup"))
native = pytest.mark.skipif(not READY, reason="operators of stereo matching are missing")
OPS = pyops if READY else reference


def small(**options) -> MoChaStereo:
    torch.manual_seed(1)
    return MoChaStereo(**{"max_disparity": 32, "ops": OPS, **options})


def views(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, *shape[:-2], 3, *shape[-2:]).mul(255).unbind()


@pytest.fixture(scope="module")
def model() -> MoChaStereo:
    return small().eval()


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return views(2, 25, 50)


@pytest.fixture
def expected(model, pair) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(model.iterate(*pair, iters=3))


# ---- pairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_any_size(model, size):
    """As if the picture had gone on with its last row and column."""
    left, right = views(1, *size)
    padding = (0, -size[1] % 32, 0, -size[0] % 32)
    with torch.inference_mode():
        found = model(left, right, iters=2)
        padded = model(*(F.pad(v, padding, mode="replicate") for v in (left, right)), iters=2)
    assert found.shape == (1, 1, *size) and found.dtype == torch.float32
    assert bool(found.isfinite().all()) and float(found.min()) >= 0
    assert_close(found, padded[..., : size[0], : size[1]], rtol=0, atol=1e-4)


def test_wider_disparities_than_the_picture():
    with torch.inference_mode():
        assert small(max_disparity=192)(*views(1, 32, 40), iters=1).isfinite().all()


def test_batches_are_single_pairs(model, pair, expected):
    with torch.inference_mode():
        for i in range(2):
            found = model(*(v[i : i + 1] for v in pair), iters=3)
            assert_close(found, expected[-1][i : i + 1], rtol=0, atol=1e-3)


def test_bytes_are_floats(model):
    left, right = (v.byte() for v in views(1, 32, 40))
    with torch.inference_mode():
        assert_close(model(left, right, iters=1), model(left.float(), right.float(), iters=1))


def test_precision_of_the_parameters(model, pair, expected):
    with torch.inference_mode():
        found = copy.deepcopy(model).double()(*pair, iters=3)
    assert found.dtype == torch.float64
    assert_close(found.float(), expected[-1], rtol=0, atol=5e-3)


@pytest.mark.parametrize("layout", ("channels_last", "sliced"))
def test_layouts(model, pair, expected, layout):
    change = {
        "channels_last": lambda v: v.contiguous(memory_format=torch.channels_last),
        "sliced": lambda v: F.pad(v, (3, 5, 1, 2))[..., 1:-2, 3:-5],
    }[layout]
    with torch.inference_mode():
        assert_close(model(*map(change, pair), iters=3), expected[-1], rtol=0, atol=1e-3)


def test_wrong_pairs(model):
    good = torch.rand(1, 3, 8, 9)
    wrong = (
        (([1.0], good), TypeError, ("left", "torch.Tensor", "list")),
        ((good, None), TypeError, ("right", "torch.Tensor", "NoneType")),
        ((good[0], good[0]), ValueError, ("left", "[B, 3, H, W]", "[3, 8, 9]")),
        ((good[:, :2], good[:, :2]), ValueError, ("left", "[B, 3, H, W]", "[1, 2, 8, 9]")),
        ((good[..., :0], good[..., :0]), ValueError, ("left", "[1, 3, 8, 0]")),
        ((good[:0], good[:0]), ValueError, ("left", "[0, 3, 8, 9]")),
        ((good, good[..., 1:]), ValueError, ("right", "[1, 3, 8, 9]", "[1, 3, 8, 8]")),
        ((good.int(), good.int()), TypeError, ("left", "uint8", "int32")),
        ((good, good.half()), TypeError, ("right", "float32", "float16")),
        ((good, good.to("meta")), ValueError, ("right", "cpu", "meta")),
    )
    for call in (model, model.iterate, model.predictions):
        for pair, error, words in wrong:
            with pytest.raises(error) as caught:
                call(*pair)
            assert all(word in str(caught.value) for word in words), caught.value
        for iters, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)):
            with pytest.raises(error, match="iters must be"):
                call(good, good, iters=iters)


# ---- iterations --------------------------------------------------------------------------------------------


def test_iterate_and_forward(model, pair, expected):
    with torch.inference_mode():
        for iters, disparity in enumerate(expected, 1):
            assert_close(model(*pair, iters=iters), disparity, rtol=0, atol=1e-4)
    assert float((expected[0] - expected[1]).abs().max()) > 0.01


def test_iterate_works_when_asked(model, pair):
    """The second update is not made before the first disparity was taken."""
    made = []
    with torch.inference_mode():
        handle = model.update.register_forward_hook(lambda *_: made.append(1))
        disparities = model.iterate(*pair, iters=10**9)
        assert not made
        next(disparities)
        handle.remove()
    assert len(made) == 1


def test_predictions(model, pair, expected):
    first, updates = model.predictions(*pair, iters=3)
    assert first.shape == (2, 1, 25, 50) and [u.shape for u in updates] == [first.shape] * 3
    assert_close(updates[-1].detach().relu(), expected[-1], rtol=0, atol=1e-3)


def test_initial_disparity_is_the_mean_of_the_volume(model, pair):
    with torch.inference_mode():
        pair = Pair(model, *pair)
        cost = model.classifier(pair.volumes[0])[:, 0]
        assert cost.shape == (2, 8, 8, 16)
        mean = sum(d * share for d, share in enumerate(cost.softmax(1).unbind(1)))
        assert_close(pair.first[:, 0], mean)
        assert_close(pair.volumes[1], pair.volumes[0].unflatten(2, (4, 2)).mean(3))


def test_cuda_graph_is_for_inference_on_cuda(model, pair):
    with pytest.raises(ValueError, match="cuda_graph needs images on a CUDA device"):
        model(*pair, cuda_graph=True)


def test_replayed_updates(model, pair, monkeypatch):
    """With a graph that runs its update while it is captured, as none on a device does, and does nothing in replays."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    with torch.inference_mode():
        pair = Pair(model, *pair)
        steps = [(d.clone(), [h.clone() for h in hidden]) for d, hidden in pair.updates(2)]
        captured = [
            (d.clone(), [h.clone() for h in hidden]) for d, hidden in pair.updates(3, cuda_graph=True)
        ]
    assert_close(captured[0], steps[0])
    assert_close(captured[1], steps[1])
    assert len(captured) == 3 and torch.equal(captured[2][0], captured[1][0])


@pytest.mark.gpu
def test_cuda_graph(model, pair, expected):
    model, pair = copy.deepcopy(model).cuda(), [v.cuda() for v in pair]
    with torch.inference_mode():
        for _ in range(2):
            assert_close(model(*pair, iters=3, cuda_graph=True), model(*pair, iters=3), rtol=0, atol=1e-3)


# ---- gradients and training --------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", (True, False))
def test_gradients_reach_every_parameter(paper):
    model, truth = small(paper=paper), torch.full((1, 1, 40, 64), 9.0)
    StereoLoss(32)(*model.predictions(*views(1, 40, 64), iters=2), truth).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None or not grad.any()]
    assert all(bool(grad.isfinite().all()) for grad in grads.values())


def test_gradients_stop_at_the_disparity(model, pair):
    """What an update adds is learnt, not where the update before it ended."""
    first, updates = model.predictions(*pair, iters=2)
    weight = model.classifier.weight
    assert torch.autograd.grad(first.sum(), weight, retain_graph=True)[0].any()
    assert torch.autograd.grad(updates[-1].sum(), weight, allow_unused=True)[0] is None


def shifted(shifts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth textures ``[B, 3, 32, 96]``, each on the right so many pixels further to the left."""
    textures = F.interpolate(torch.rand(len(shifts), 3, 16, 64), scale_factor=2, mode="bicubic").clamp(0, 1)
    right = torch.stack([t[..., s : s + 96] for t, s in zip(textures, shifts, strict=True)])
    truth = torch.tensor(shifts, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 32, 96)
    return 255 * textures[..., :96], 255 * right, truth


def train(model: MoChaStereo, steps: int, pairs) -> list[float]:
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(steps):
        left, right, truth = pairs()
        optimizer.zero_grad()
        loss = StereoLoss(32)(*model.predictions(left, right, iters=1), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_pair_can_be_learnt():
    pair = shifted([6])
    losses = train(small(), 12, lambda: pair)
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.slow
def test_matching_can_be_learnt():
    """On textures that were not trained on; whatever does not match is 6 pixels off."""
    model = small()
    train(model, 40, lambda: shifted(torch.randint(2, 26, (4,)).tolist()))
    left, right, truth = shifted([4, 10, 16, 22])
    with torch.inference_mode():
        error = (model.eval()(left, right, iters=1) - truth).abs()
    assert error[..., 24:].mean().item() < 1.5, "of what both views show"


# ---- parts -------------------------------------------------------------------------------------------------


def test_motif_attention_is_its_definition():
    torch.manual_seed(3)
    layer, (features, other) = MotifAttention(6).double(), torch.randn(2, 2, 6, 7, 9, dtype=torch.float64)
    both = torch.cat([features, other], 1)
    high = both - F.conv2d(both, torch.full((12, 12, 3, 3), 1 / 9, dtype=torch.float64), padding=1)
    motif = layer.windows(high).softmax(1)
    product = motif.unsqueeze(2) * features.unsqueeze(1)
    channels = F.instance_norm(F.conv3d(product, layer.kernel[None], padding=1))
    assert_close(layer(features, other, reference), F.leaky_relu(channels)[:, 0])


def test_paper_and_code_share_weights(pair):
    ours, theirs = small().eval(), small(paper=False).eval()
    assert_close(ours.state_dict(), theirs.state_dict())
    with torch.inference_mode():
        assert float((ours(*pair, iters=1) - theirs(*pair, iters=1)).abs().max()) > 0.1


@native
@pytest.mark.parametrize("paper", (True, False))
def test_operators_and_definitions_agree(paper, pair):
    truth = torch.full((2, 1, 25, 50), 9.0)
    found = []
    for ops in (pyops, reference):
        model = small(paper=paper, ops=ops)
        predictions = model.predictions(*pair, iters=3)
        StereoLoss(32)(*predictions, truth).backward()
        found.append((predictions, {n: p.grad for n, p in model.named_parameters()}))
    assert_close(found[0][0], found[1][0], rtol=0, atol=1e-3)
    whole = math.sqrt(sum(float(grad.square().sum()) for grad in found[1][1].values()))
    for name, grad in found[0][1].items():
        assert float((grad - found[1][1][name]).norm()) <= 0.02 * float(grad.norm()) + 1e-5 * whole, name
