"""The demo runs: pictures, a .cube file, a table, and an exit status that tells right from wrong."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

import pyops
from pyops import demo
from pyops.demo import exposure, grading
from pyops.io import read_cube

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("rich")
pytest.importorskip("skimage")


def run(*options: object) -> int:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args([str(option) for option in options]))


def test_quick_demo(tmp_path, capsys):
    assert run("--quick", "--size", "320x180", "--device", "cpu", "--out", tmp_path / "new" / "folder") == 0
    printed = capsys.readouterr().out
    for word in (
        "trilinear",
        "uint8",
        "mix of 4",
        "GB/s",
        "grid_sample",
        "ratio",
        "max. diff.",
        "6 frames of 320x180",
        "Exposure correction of 320x180",
        "PSNR",
        "-1.5 stops",
        "+1.5 stops",
    ):
        assert word in printed, word
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == ["exposure.jpg", "mix.jpg", "teal_and_orange.cube", "teal_and_orange.jpg"]

    lut = read_cube(tmp_path / "new" / "folder" / "teal_and_orange.cube")
    assert lut.title == "Teal and orange" and torch.equal(lut.table, grading.teal_and_orange())
    with Image.open(tmp_path / "new" / "folder" / "teal_and_orange.jpg") as picture:
        assert picture.size[0] == 1920
        left, right = picture.crop((0, 0, 956, 400)), picture.crop((964, 0, 1920, 400))
    means = [
        torch.tensor(half.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) for half in (left, right)
    ]
    assert (means[0] - means[1]).abs().max() > 3, "after looks like before"


def test_own_image_and_one_frame(tmp_path):
    Image.new("RGB", (40, 90), (200, 120, 40)).save(tmp_path / "own.png")
    assert run("--image", tmp_path / "own.png", "--frames", 1, "--size", "33x17", "--out", tmp_path) == 0


def test_wrong_result_is_an_error(tmp_path, monkeypatch, capsys):
    right = pyops.lut3d
    monkeypatch.setattr(pyops, "lut3d", lambda *args, **options: right(*args, **options) + 2e-4)
    assert run("--frames", 1, "--size", "32x18", "--out", tmp_path) == 1
    assert "Wrong by more than the tolerance: .cube trilinear" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["absent.png", "not_an_image.png"])
def test_unreadable_image(tmp_path, capsys, name):
    (tmp_path / "not_an_image.png").write_text("no pixels")
    assert run("--image", tmp_path / name, "--out", tmp_path) == 2
    assert name in capsys.readouterr().out


def test_missing_extra_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    assert run("--quick", "--out", tmp_path) == 2
    assert capsys.readouterr().out == "The demo needs rich: pip install '.[demo]'\n"


@pytest.mark.parametrize(
    "options", [("--size", "3840"), ("--size", "0x9"), ("--frames", "0"), ("--frames", "-3")]
)
def test_wrong_options(options, capsys):
    with pytest.raises(SystemExit):
        run(*options)
    assert "expected a positive whole number" in capsys.readouterr().err


def test_looks():
    weights = grading.mixing_weights(7)
    assert weights.shape == (7, 4) and torch.allclose(weights.sum(1), torch.ones(7)) and (weights >= 0).all()
    basis = grading.basis_luts(grading.teal_and_orange(9))
    assert basis.shape == (4, 3, 9, 9, 9) and basis.min() >= 0 and basis.max() <= 1
    grey = torch.tensor([0.25, 0.7]).view(1, 1, 2).expand(3, 1, 2)
    shadow, light = pyops.lut3d(grey, grading.teal_and_orange()).unbind(-1)
    assert shadow[2] > shadow[0], "shadows are teal"
    assert light[0] > light[2], "lights are orange"


def test_one_part(tmp_path):
    assert run("exposure", "--size", "64x48", "--out", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["exposure.jpg"]


def test_exposure():
    grey = torch.full((1, 3, 4, 4), 0.4)
    assert torch.equal(exposure.expose(grey, 0), (grey * 255).round() / 255)
    darker, lighter = (exposure.expose(grey, stops) for stops in (-2.2, 2.2))
    assert torch.allclose(darker, grey / 2, atol=0.003) and torch.allclose(lighter, grey * 2, atol=0.003)
    assert abs(exposure.psnr(grey + 0.1, grey) - 20) < 0.3
