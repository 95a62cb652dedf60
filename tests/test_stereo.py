"""`pyops stereo`: what it writes, in which units, and what it says where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pyops.models import MoChaStereo

from pyops import cli, models, stereo
from pyops.io import disparity as disparities
from pyops.io.pfm import read_pfm, write_pfm

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("av")
pytest.importorskip("rich")
GENERATOR = np.random.default_rng(0)
RESULTS = ["colours.png", "disparity.pfm", "disparity.png"]


class Known:
    """A model whose disparities are known: a ramp over the columns, larger by ``shift``."""

    max_disparity = 32

    def __init__(self, slope: float = 0.1, shift: float = 2.0):
        self.slope, self.shift = slope, shift
        self.given: list[torch.Tensor] = []

    def to(self, device):
        return self

    def __call__(self, left, right, *, iters):
        self.given += [left, right]
        self.iters = iters
        return (torch.arange(left.shape[3]) * self.slope + self.shift).expand(1, 1, *left.shape[2:]).clone()


def run(*options: object, model: object = None) -> int:
    """The exit status of `pyops stereo`, with another model than the one that comes along."""
    with mock.patch.object(models.MoChaStereo, "pretrained", lambda: model or Known()):
        return cli.main(["stereo", *map(str, options)])


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    """Of 60 x 40 pixels."""
    paths = tmp_path / "left.png", tmp_path / "right.png"
    for path in paths:
        Image.fromarray(GENERATOR.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return paths


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_results(pair, tmp_path, capsys):
    model = Known()
    assert run(*pair, "-o", tmp_path / "new/out", "--iters", 5, model=model) == 0
    assert names(tmp_path / "new/out") == RESULTS and model.iters == 5
    expected = np.broadcast_to(np.arange(60, dtype=np.float32) * 0.1 + 2, (40, 60))
    floats = read_pfm(tmp_path / "new/out/disparity.pfm")
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, expected, rtol=1e-6)
    with Image.open(tmp_path / "new/out/disparity.png") as image:
        levels = np.array(image)
    assert levels.dtype == np.uint16 and np.array_equal(levels, np.rint(floats * 256))
    with Image.open(tmp_path / "new/out/colours.png") as image:
        colours = np.array(image)
    assert colours.shape == (40, 60, 3) and colours[0, 0, 2] > 2 * colours[0, 0, 0]
    assert colours[0, -1, 0] > 2 * colours[0, -1, 2], "near is red, far blue"
    with Image.open(pair[0]) as image:
        np.testing.assert_array_equal(model.given[0][0].permute(1, 2, 0).numpy(), np.array(image))
    printed = capsys.readouterr().out
    assert "60x40" in printed and "2.0 to 7.9 pixels" in printed


@pytest.mark.parametrize("options, width", ((("--scale", 0.5), 30), ((), 60)))
def test_scale(pair, tmp_path, options, width):
    """Pictures are made smaller, disparities are of the picture as it is."""
    model = Known(slope=0)
    assert run(*pair, "-o", tmp_path / "out", *options, model=model) == 0
    assert model.given[0].shape == (1, 3, width * 2 // 3, width)
    floats = read_pfm(tmp_path / "out/disparity.pfm")
    assert floats.shape == (40, 60) and (floats == 2 * 60 / width).all()


def test_large_pictures_are_made_smaller(tmp_path):
    path, model = tmp_path / "a.png", Known(slope=0)
    Image.fromarray(np.zeros((10, 384, 3), np.uint8)).save(path)
    assert run(path, path, "-o", tmp_path, model=model) == 0
    assert model.given[0].shape == (1, 3, 5, 6 * 32)
    assert (read_pfm(tmp_path / "disparity.pfm") == 4).all()


def test_16_bits_and_grey(tmp_path):
    levels = GENERATOR.integers(0, 2**16, (8, 12), np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    model = Known()
    assert run(tmp_path / "a.png", tmp_path / "a.png", "-o", tmp_path / "out", model=model) == 0
    expected = np.repeat(levels[None].astype(np.float32), 3, 0) / 257
    np.testing.assert_allclose(model.given[0][0].numpy(), expected, rtol=1e-6)


def test_points(pair, tmp_path):
    assert run(*pair, "-o", tmp_path / "out", "--ply", "--focal", 50, "--baseline", 0.2, "--cx", 10) == 0
    assert names(tmp_path / "out") == [*RESULTS, "points.ply"]
    header, data = (tmp_path / "out/points.ply").read_bytes().split(b"end_header\n", 1)
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 2400\nproperty float x\n")
    assert header.endswith(b"property uchar blue\n")
    kind = [*((name, "<f4") for name in "xyz"), ("colour", "u1", 3)]
    points = np.frombuffer(data, np.dtype(kind)).reshape(40, 60)
    z = 50 * 0.2 / (np.arange(60) * 0.1 + 2)
    np.testing.assert_allclose(points["z"], np.broadcast_to(z, (40, 60)), rtol=1e-5)
    np.testing.assert_allclose(points["x"][7], (np.arange(60) - 10) * z / 50, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(points["y"][:, 3], (np.arange(40) - 19.5) * z[3] / 50, rtol=1e-4)
    with Image.open(pair[0]) as image:
        np.testing.assert_array_equal(points["colour"], np.array(image))


def test_check_leaves_out_what_the_other_view_does_not_confirm(pair, tmp_path, capsys):
    """The ramp of the mirrored pair runs the other way: they agree where both are nearly the same."""
    model = Known(slope=0.1, shift=2)
    assert run(*pair, "-o", tmp_path / "out", "--check", model=model) == 0
    floats = read_pfm(tmp_path / "out/disparity.pfm")
    x = np.arange(60)
    left = x * 0.1 + 2
    there = np.rint(x - left)
    agreed = (there >= 0) & (np.abs(left - ((59 - there) * 0.1 + 2)) < 1)
    assert 5 < agreed.sum() < 55
    np.testing.assert_array_equal(np.isfinite(floats), np.broadcast_to(agreed, (40, 60)))
    with Image.open(tmp_path / "out/disparity.png") as image:
        np.testing.assert_array_equal(np.array(image) > 0, np.isfinite(floats))
    assert f"confirmed │ {100 * agreed.mean():.1f} %" in capsys.readouterr().out
    mirrored = [view.flip(3) for view in (model.given[1], model.given[0])]
    assert all(torch.equal(a, b) for a, b in zip(model.given[2:], mirrored, strict=True))


def test_own_weights(pair, tmp_path, capsys):
    torch.save(MoChaStereo(max_disparity=32).half().state_dict(), tmp_path / "tiny.pt")
    options = "--weights", tmp_path / "tiny.pt", "--max-disparity", 32, "--iters", 2, "--device", "cpu"
    assert cli.main(["stereo", *map(str, (*pair, "-o", tmp_path / "out", *options))]) == 0
    expected = MoChaStereo.from_checkpoint(tmp_path / "tiny.pt", max_disparity=32)
    left, right = (torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] for path in pair)
    with torch.inference_mode():
        found = expected(left, right, iters=2)[0, 0].numpy()
    floats = read_pfm(tmp_path / "out/disparity.pfm")
    np.testing.assert_allclose(floats, np.where(found > 0, found, np.inf), rtol=1e-3, atol=1e-3)


def test_inputs_and_results_are_not_overwritten(pair, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "disparity.pfm").write_text("something of value")
    assert run(*pair, "-o", out) == 1
    assert "disparity.pfm exists; --force overwrites it" in capsys.readouterr().err
    assert names(out) == ["disparity.pfm"]
    assert run(*pair, "-o", out, "--force") == 0 and names(out) == RESULTS
    before = (out / "disparity.png").read_bytes()
    assert run(out / "disparity.png", pair[1], "-o", out, "--force") == 1
    assert "would overwrite an input" in capsys.readouterr().err
    assert (out / "disparity.png").read_bytes() == before


def test_nothing_half_written_stays(pair, tmp_path, capsys):
    with mock.patch("pyops.stereo.write_pfm", side_effect=OSError(28, "No space left on device")):
        assert run(*pair, "-o", tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err and names(tmp_path / "out") == []


@pytest.mark.parametrize(
    "options, status, message",
    (
        (("left.png", "right.png"), 2, "required: -o/--out"),
        (("left.png", "small.png", "-o", "out"), 1, "must be of one size, got 60x40 and 30x20"),
        (("left.png", "absent.png", "-o", "out"), 1, "absent.png: No such file or directory"),
        (("left.png", "text.png", "-o", "out"), 1, "text.png: "),
        (("left.png", "empty.png", "-o", "out"), 1, "empty.png: the file is empty"),
        (("left.png", "right.png", "-o", "left.png"), 2, "--out left.png is a file"),
        (("left.png", "right.png", "-o", "out", "--ply"), 2, "--ply needs --focal and --baseline"),
        (("left.png", "right.png", "-o", "out", "--ply", "--focal", "9"), 2, "--ply needs --baseline"),
        (("left.png", "right.png", "-o", "out", "--focal", "0"), 2, "expected a number above 0, got '0'"),
        (("left.png", "right.png", "-o", "out", "--cx", "nan"), 2, "expected a number, got 'nan'"),
        (("left.png", "right.png", "-o", "out", "--scale", "2"), 2, "above 0 to 1, got '2'"),
        (("left.png", "right.png", "-o", "out", "--iters", "0"), 2, "whole number above 0, got '0'"),
        (("left.png", "right.png", "-o", "out", "--weights", "no.pt"), 2, "No such file or directory: no.pt"),
        (("left.png", "right.png", "-o", "out", "--weights", "left.png"), 2, "is no PyTorch checkpoint"),
    ),
)
def test_wrong_usage(pair, tmp_path, monkeypatch, capsys, options, status, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20)).save("small.png")
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    try:
        found = run(*options)
    except SystemExit as error:  # of argparse
        found = error.code
    assert found == status and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_weights_no_cuda_no_extra(pair, tmp_path, monkeypatch, capsys):
    missing = mock.Mock(side_effect=FileNotFoundError("mocha_stereo.pt"))
    with mock.patch.object(models.MoChaStereo, "pretrained", missing):
        assert cli.main(["stereo", *map(str, pair), "-o", str(tmp_path / "out")]) == 2
    assert (
        "no weights come along: pass a checkpoint, such as examples/train_mocha.py writes, with --weights"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*pair, "-o", tmp_path / "out", "--device", "cuda") == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(*pair, "-o", tmp_path / "out") == 2
    assert "pip install '.[stereo]'" in capsys.readouterr().err


# ---- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ((3, 5), (4, 2, 3), (1, 1)))
@pytest.mark.parametrize("order", "<>")
def test_pfm(tmp_path, shape, order):
    pixels = GENERATOR.standard_normal(shape).astype(np.float32)
    pixels.flat[0] = np.inf
    path = tmp_path / "a.pfm"
    with open(path, "wb") as file:
        write_pfm(file, pixels)
    kind = b"PF" if len(shape) == 3 else b"Pf"
    little = b"%s\n%d %d\n-1.0\n" % (kind, shape[1], shape[0]) + pixels[::-1].astype("<f4").tobytes()
    assert path.read_bytes() == little, "from the bottom to the top"
    if order == ">":
        path.write_bytes(little[: little.index(b"-1.0")] + b"1.0\n" + pixels[::-1].astype(">f4").tobytes())
    found = read_pfm(path)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize(
    "content, message",
    (
        (b"", "not a PFM"),
        (b"P6\n1 1\n255\n000", "not a PFM"),
        (b"Pf\n1 1\n0\n0000", "scale other than 0"),
        (b"Pf\n1 1\n1e999\n0000", "scale other than 0"),
        (b"Pf\n1 1\n-e-\n0000", "scale other than 0"),
        (b"Pf\n2 1\n-1\n0000", "holds 4 bytes of pixels, expected 8"),
        (b"Pf\n1 1\n-1\n00000", "holds 5 bytes of pixels, expected 4"),
    ),
)
def test_damaged_pfm(tmp_path, content, message):
    (tmp_path / "a.pfm").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pfm(tmp_path / "a.pfm")


def test_16_bit_disparities():
    given = np.array([[0.0001, 1, 2.5, 255.99], [256, np.inf, np.nan, 1 / 256]], np.float32)
    levels = disparities.to_16_bits(given)
    assert levels.tolist() == [[1, 256, 640, 65533], [0, 0, 0, 1]]
    back = disparities.from_16_bits(levels)
    known = levels > 0
    assert np.isinf(back[~known]).all() and np.abs(back[known] - given[known]).max() <= 1 / 256


def test_colours_of_nothing_and_of_one_value():
    assert not disparities.to_colours(np.full((2, 3), np.inf)).any()
    colours = disparities.to_colours(np.array([[4.0, 4.0, np.inf]]))
    assert colours[0, 0].any() and not colours[0, 2].any()


def test_consistency():
    left = torch.tensor([[[[0.0, 1.0, 1.0, 2.0, 1.0]]]])
    right = torch.tensor([[[[1.0, 2.0, 9.0, 0.5, 0.0]]]])
    assert stereo.consistent(left, right).tolist() == [[[[False, True, False, True, True]]]]
