"""CoTF: the published checkpoint gives the published results, by kernels and by definition, for every kind of image."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch
from pyops.models import CoTF
from torch.testing import assert_close

import pyops
from pyops import reference

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cotf"
CHECKPOINT = DATA / "lcdp_net.pth"
SIZES = ((1, 1), (1, 7), (5, 3), (31, 17), (257, 300))
OPS = {"pyops": pyops, "reference": reference}
MODES = {"grad": torch.enable_grad, "inference": torch.inference_mode}


def lively(**options) -> CoTF:
    """Weights of which none is a zero that would hide what comes before it."""
    torch.manual_seed(1)
    model = CoTF(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, CoTF]:
    """The same weights with either kind of operators."""
    first = lively()
    second = CoTF(ops=reference).eval()
    second.load_state_dict(first.state_dict())
    return {"pyops": first, "reference": second}


@pytest.fixture(scope="module")
def model(models) -> CoTF:
    return models["pyops"]


# ---- the published checkpoint --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """Input and ground truth, ``[1, 3, 1624, 1080]``."""
    if not CHECKPOINT.is_file():
        pytest.skip("the published checkpoint is not there")
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    return [
        torch.from_numpy(numpy.array(image.open(DATA / f"example_{name}.png").convert("RGB")))
        .permute(2, 0, 1)[None]
        .float()
        / 255
        for name in ("input", "gt")
    ]


def psnr(x, y):
    return -10 * math.log10((x - y).square().mean().item())


@pytest.fixture(scope="module")
def published(pair):
    """What each kind of operators makes of the input in each mode, not clamped."""
    found = {}
    for name, ops in OPS.items():
        model = CoTF.from_checkpoint(CHECKPOINT, ops=ops)
        for mode, context in MODES.items():
            with context():
                found[name, mode] = model(pair[0]).detach()
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ops", OPS)
def test_published_checkpoint_gives_the_published_result(published, pair, ops, mode):
    result = published[ops, mode]
    rounded = (result.clamp(0, 1) * 255).round() / 255
    assert psnr(rounded, pair[1]) == pytest.approx(25.470, abs=0.01)
    assert psnr(pair[0], pair[1]) < 15
    assert result.double().mean().item() == pytest.approx(0.373009, abs=1e-5)
    assert result.double().std().item() == pytest.approx(0.290104, abs=1e-5)
    expected = torch.tensor([0.276778, 0.588519, 0.861342])
    assert_close(result[0, :, 500, 800], expected, rtol=0, atol=2e-5)


def test_every_way_gives_the_same(published):
    results = list(published.values())
    for other in results[1:]:
        assert float((other - results[0]).abs().max()) < 1e-4


def test_published_checkpoint_in_bytes(published, pair):
    model = CoTF.from_checkpoint(CHECKPOINT)
    assert not model.training
    with torch.inference_mode():
        result = model((pair[0] * 255).round().byte())
    expected = published["pyops", "inference"].clamp(0, 1) * 255
    assert result.dtype == torch.uint8
    assert float((result.float() - expected).abs().max()) < 0.5 + 255e-4


# ---- weights -------------------------------------------------------------------------------------------


def test_parameters():
    ours, theirs = CoTF().state_dict(), CoTF(ops=reference).state_dict()
    assert sum(p.numel() for p in CoTF().parameters()) == 309_998
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}
    assert all(t.dtype == torch.float32 for t in ours.values())


def test_a_new_model_starts_from_the_identity():
    model = CoTF()
    assert model.training and torch.equal(model.luts.basis[0], pyops.identity_lut(17))
    assert not model.luts.basis[1:].any()
    x, y = model.eval().sampler(torch.rand(1, 3, 256, 256))
    assert torch.equal(x, torch.ones(1, 255)) and torch.equal(y, torch.ones(1, 255))


@pytest.mark.parametrize("key", (None, "params_ema", "params", "state_dict"))
@pytest.mark.parametrize("prefix", ("", "module."))
def test_state_dict_round_trip(tmp_path, model, key, prefix):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "weights.pt")
    loaded = CoTF.from_checkpoint(tmp_path / "weights.pt")
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    image = torch.rand(1, 3, 20, 30)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model(image))
    as_text = CoTF.from_checkpoint(str(tmp_path / "weights.pt"), ops=reference)
    assert as_text.ops is reference


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_that_are_none(tmp_path, model):
    state, spark = model.state_dict(), tmp_path / "spark"
    name = "sampler.intervals.weight"
    contents = {
        "text": b"These are no weights.\n" * 100,
        "nothing": b"",
        "a pickle with code": pickle.dumps({"params": Bomb(spark)}),
        "a checkpoint with code": {"params": {**state, "bomb": Bomb(spark)}},
        "half a file": _saved(state)[:5000],
        "a list": [1, 2, 3],
        "a tensor": torch.rand(3),
        "numbers": {"params": {"a": 1.0}},
        "other keys": {1: torch.rand(3)},
        "another model": torch.nn.Linear(3, 4).state_dict(),
        "incomplete": {k: t for k, t in state.items() if k != name},
        "too much": {**state, "more.weight": torch.rand(2)},
        "other tables": {**state, "luts.basis": torch.rand(3, 3, 9, 9, 9)},
        "other columns": {**state, "luts.basis": torch.rand(3 * 9**3, 3)},
        "more tables": {**state, "luts.basis": torch.rand(5, 3, 17, 17, 17)},
        "other sizes": {**state, name: torch.rand(126, 256)},
    }
    words = {
        "another model": ("missing", "unknown", "'bias'"),
        "incomplete": ("1 tensors are missing", name),
        "too much": ("1 are unknown", "more.weight"),
        "other tables": ("luts.basis", "[3, 3, 9, 9, 9]", "[3, 3, 17, 17, 17]"),
        "other columns": ("luts.basis", "[2187, 3]", "[3, 3, 17, 17, 17]"),
        "more tables": ("luts.basis", "[5, 3, 17, 17, 17]"),
        "other sizes": (name, "[126, 256]", "[510, 256]"),
    }
    for label, content in contents.items():
        path = tmp_path / f"{label}.pt"
        path.write_bytes(content if isinstance(content, bytes) else _saved(content))
        with pytest.raises(ValueError) as caught:
            CoTF.from_checkpoint(path)
            pytest.fail(f"{label} was loaded")
        missing = [word for word in (str(path), *words.get(label, ())) if word not in str(caught.value)]
        assert not missing, f"{label}: {missing} not in {caught.value}"
    assert not spark.exists(), "code of a checkpoint was run"
    for path in (tmp_path / "there is none.pt", tmp_path):
        with pytest.raises(OSError):
            CoTF.from_checkpoint(path)


def _saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_copies_keep_their_operators(models):
    for name, model in models.items():
        assert copy.deepcopy(model).ops is OPS[name]
        copied = pickle.loads(pickle.dumps(model))
        assert copied.ops is OPS[name]
        assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), model.parameters(), strict=True))


# ---- images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_any_size(models, size):
    image = torch.rand(1, 3, *size)
    with torch.inference_mode():
        result, expected = models["pyops"](image), models["reference"](image)
    assert result.shape == image.shape and result.dtype == torch.float32
    assert bool(result.isfinite().all())
    assert_close(result, expected, rtol=0, atol=1e-4)
    layers = models["pyops"](image)  # parameters require gradients
    assert layers.requires_grad
    assert_close(layers.detach(), expected, rtol=0, atol=1e-4)


def test_batches_are_single_images(model):
    images = torch.rand(3, 3, 37, 50) * torch.tensor([1, 0.3, 0.1]).view(3, 1, 1, 1)
    with torch.inference_mode():
        together, weights = model(images), model.lut_weights(images)
        for i in range(3):
            one = images[i : i + 1]
            assert_close(together[i : i + 1], model(one), rtol=0, atol=1e-5)
            assert_close(weights[i : i + 1], model.lut_weights(one), rtol=0, atol=1e-5)
        assert float((weights[0] - weights[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("dtype, levels", ((torch.uint8, 255), (torch.uint16, 65535)))
@pytest.mark.parametrize("mode", MODES)
def test_integers_are_the_float_path_rounded(model, dtype, levels, mode):
    image = torch.randint(0, levels + 1, (2, 3, 60, 41))
    with MODES[mode]():
        result = model(image.to(dtype))
        expected = model(image.float() / levels).clamp(0, 1) * levels
    assert result.dtype == dtype and result.shape == image.shape
    assert float((result.double() - expected.double()).abs().max()) <= 0.5 + levels * 1e-5


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("mode", MODES)
def test_half_images(model, dtype, mode):
    """Arithmetic is float32; only the result is rounded."""
    image = torch.rand(1, 3, 33, 40).to(dtype)
    with MODES[mode]():
        result, expected = model(image), model(image.float())
    assert result.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert_close(result.float(), expected, rtol=eps, atol=1e-5)


@pytest.mark.parametrize("layout", ("channels_last", "sliced", "expanded"))
def test_layouts(model, layout):
    image = torch.rand(2, 3, 30, 44)
    other = {
        "channels_last": lambda: image.contiguous(memory_format=torch.channels_last),
        "sliced": lambda: torch.nn.functional.pad(image, (3, 5, 1, 2))[..., 1:-2, 3:-5],
        "expanded": lambda: image[:1].expand(2, -1, -1, -1),
    }[layout]()
    if layout == "expanded":
        image = other.contiguous()
    with torch.inference_mode():
        assert_close(model(other), model(image), rtol=0, atol=1e-5)


def test_wrong_images(model):
    image = torch.rand(1, 3, 8, 9)
    for wrong, error, words in (
        ([1.0], TypeError, ("torch.Tensor", "list")),
        (image[0], ValueError, ("[B, 3, H, W]", "[3, 8, 9]")),
        (image[:, :2], ValueError, ("[B, 3, H, W]", "[1, 2, 8, 9]")),
        (image.expand(1, 1, 1, 3, 8, 9), ValueError, ("[B, 3, H, W]",)),
        (image[:, :, :0], ValueError, ("[1, 3, 0, 9]",)),
        (image[..., :0], ValueError, ("[1, 3, 8, 0]",)),
        (image.int(), TypeError, ("uint8", "int32")),
        (image.to(torch.complex64), TypeError, ("uint8", "complex64")),
    ):
        for call in (model, model.lut_weights):
            with pytest.raises(error) as caught:
                call(wrong)
            missing = [word for word in ("image", *words) if word not in str(caught.value)]
            assert not missing, f"{missing} not in {caught.value}"
    for wrong in (torch.rand(3), torch.rand(1, 4), torch.rand(2, 3)):
        with pytest.raises(ValueError, match="lut_weights"):
            model(image, lut_weights=wrong)


# ---- the global transformation -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_lut_weights(model, mode):
    image = torch.rand(2, 3, 45, 31)
    with MODES[mode]():
        expected, weights = model(image), model.lut_weights(image)
        assert weights.shape == (2, 3)
        assert torch.equal(model(image, lut_weights=weights), expected)
        for changed in (weights + torch.tensor([0.2, 0, 0]), weights.flip(0)):
            assert float((model(image, lut_weights=changed) - expected).abs().amax((1, 2, 3)).min()) > 1e-3


def test_lut_weights_carry_gradients(model):
    image, weights = torch.rand(1, 3, 16, 15), torch.rand(1, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(model(image, lut_weights=weights).square().sum(), weights)
    assert bool(grad.isfinite().all()) and bool((grad != 0).all())


# ---- training ------------------------------------------------------------------------------------------


def gradients(model, loss):
    leaves = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def test_gradients_reach_every_parameter(models):
    """But those of the auxiliary output of the paper, which only training by its authors had."""
    image = torch.rand(2, 3, 40, 52)
    ours, theirs = (gradients(m, (m(image) - image).square().mean()) for m in models.values())
    unused = {name for name, grad in ours.items() if grad is None}
    assert unused == {"context.auxiliary.weight", "context.auxiliary.bias"}
    for name in ours.keys() - unused:
        assert bool(ours[name].isfinite().all()) and bool(ours[name].any()), name
        # Slopes between samples jump where rounding moves one across a pixel.
        share = 2e-2 if name.startswith("sampler") else 1e-2
        error = float((ours[name] - theirs[name]).norm())
        assert error <= share * float(theirs[name].norm()) + 1e-9, f"{name}: {error}"


def test_a_step_down_the_gradient_lowers_the_loss_as_it_says(model):
    model, image = copy.deepcopy(model), torch.rand(2, 3, 40, 52)
    before = (model(image) - image).square().mean()
    grads = {name: grad for name, grad in gradients(model, before).items() if grad is not None}
    length = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads.values()))
    step = 1e-3 * before.item() / length
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in grads:
                parameter -= step * grads[name] / length
        after = (model(image) - image).square().mean()
    assert (before - after).item() == pytest.approx(step * length, rel=0.1)


def test_gradient_to_the_image(models):
    found = []
    for model in models.values():
        image = torch.rand(1, 3, 24, 30, generator=torch.Generator().manual_seed(5)).requires_grad_()
        found += torch.autograd.grad(model(image).square().sum(), image)
    assert float((found[0] - found[1]).norm()) < 1e-3 * float(found[1].norm())


def test_dropout_is_for_training_only(model):
    image, training = torch.rand(1, 3, 20, 20), copy.deepcopy(model).train()
    with torch.inference_mode():
        assert torch.equal(model(image), model(image))
        assert not torch.equal(training(image), training(image))


# ---- PyTorch's compilers -------------------------------------------------------------------------------


def test_export(model):
    """Exported, saved, loaded and run on another size, with the operators in it."""
    sizes = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    with torch.no_grad():
        exported = torch.export.export(model, (torch.rand(1, 3, 20, 30),), dynamic_shapes=sizes)
        buffer = io.BytesIO()
        torch.export.save(exported, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        for size in ((20, 30), (47, 21)):
            image = torch.rand(1, 3, *size)
            assert_close(loaded(image), model(image), rtol=0, atol=1e-6)
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("pyops" in name for name in called)


@pytest.mark.parametrize("mode", (pytest.param("grad", marks=pytest.mark.slow), "no_grad"))
def test_compile(model, mode):
    """One graph for all sizes, without breaks."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.set_grad_enabled(mode == "grad"):
        for size in ((20, 30), (47, 21)):
            image = torch.rand(1, 3, *size)
            assert_close(compiled(image), model(image), rtol=0, atol=1e-5)
