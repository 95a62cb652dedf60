"""`pyops correct`: which files it reads and writes, and what it says where it cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from correcting import Halving, Image, load, names, run, samples, save
from PIL import ImageFile

from pyops.io import deep


def test_folders(tmp_path):
    for name in (
        "in/a.png",
        "in/deep/er/b.PNG",
        "in/deep/c.jpg",
        "in/.hidden.png",
        "in/.git/d.png",
        "more.png",
    ):
        save(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("not taken")
    assert run(tmp_path / "in", tmp_path / "more.png", "-o", tmp_path / "in/out") == 0
    expected = ["a.png", "deep/c.jpg", "deep/er/b.PNG", "more.png"]
    assert names(tmp_path / "in/out") == expected
    assert run(tmp_path / "in", "-o", tmp_path / "in/out", "--force") == 0, "results are not taken for inputs"
    assert names(tmp_path / "in/out") == expected


@pytest.mark.parametrize(
    "out, expected", (("b.png", "b.png"), ("new/b.png", "new/b.png"), ("new/", "new/a.png"))
)
def test_file_or_folder(tmp_path, monkeypatch, out, expected):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    assert run("a.png", "-o", out) == 0 and (tmp_path / expected).is_file()
    os.mkdir("there")
    assert run("a.png", "-o", "there") == 0 and (tmp_path / "there/a.png").is_file()


def test_inputs_and_results_are_not_overwritten(tmp_path, capsys):
    pixels = save(tmp_path / "a.png")
    os.symlink(tmp_path / "a.png", tmp_path / "link.png")
    for target in ("a.png", "link.png"):
        assert run(tmp_path / "a.png", "-o", tmp_path / target, "--force") == 1
        assert "would overwrite an input" in capsys.readouterr().err
    assert run(tmp_path, "-o", tmp_path, "--force") == 1
    assert np.array_equal(load(tmp_path / "a.png"), pixels)

    result = tmp_path / "b.png"
    result.write_text("something of value")
    assert run(tmp_path / "a.png", "-o", result) == 1
    assert "b.png exists; --force overwrites it" in capsys.readouterr().err
    assert result.read_text() == "something of value"
    assert run(tmp_path / "a.png", "-o", result, "--force") == 0
    assert np.array_equal(load(result), pixels // 2)


def test_a_result_that_came_up_meanwhile_is_not_overwritten(tmp_path, capsys):
    class Slow(Halving):
        def __call__(self, image, *, lut_weights=None):
            (tmp_path / "b.png").write_text("something of value")
            return image

    save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png", model=Slow()) == 1
    assert "b.png exists" in capsys.readouterr().err
    assert names(tmp_path) == ["a.png", "b.png"] and (tmp_path / "b.png").read_text() == "something of value"


def test_two_results_of_one_name(tmp_path, capsys):
    first, second = save(tmp_path / "one/a.png"), save(tmp_path / "two/a.png")
    assert run(tmp_path / "one/a.png", tmp_path / "two", "-o", tmp_path / "out") == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"skipped {tmp_path}/two/a.png: its result would have the same name as that of")
    assert np.array_equal(load(tmp_path / "out/a.png"), first // 2) and not np.array_equal(first, second)


@pytest.mark.parametrize(
    "options, message",
    (
        (("a.png",), "required: -o/--out"),
        (("a.png", "-o", "b.xyz"), "--out b.xyz must end in / or in one of .avif .avi .bmp"),
        (("a.png", "-o", "b"), "--out b must end in /"),
        (("a.png", "a.png", "-o", "a.png"), "a.png is a file; for several inputs"),
        ((".", "-o", "a.png"), "a.png is a file; for several inputs"),
        (("a.png", "-o", "b.png", "--smooth", "1"), "expected a number from 0 to below 1, got '1'"),
        (("a.png", "-o", "b.png", "--smooth", "nan"), "expected a number from 0 to below 1, got 'nan'"),
        (("a.png", "-o", "b.png", "--quality", "0"), "expected a whole number from 1 to 100, got '0'"),
        (("a.png", "-o", "b.png", "--device", "tpu"), "invalid choice: 'tpu'"),
        (("a.png", "-o", "b.png", "--half", "--device", "cpu"), "--half needs a CUDA device"),
        (("a.png", "-o", "b.png", "--weights", "absent.pt"), "No such file or directory: absent.pt"),
        (("a.png", "-o", "b.png", "--weights", "a.png"), "a.png is no PyTorch checkpoint"),
    ),
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    try:
        status = run(*options)
    except SystemExit as error:  # of argparse
        status = error.code
    assert status == 2 and message.replace(".avif .avi", ".avi .avif") in capsys.readouterr().err
    assert names(tmp_path) == ["a.png"]


def test_missing_cuda_and_missing_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (
        run(
            save(tmp_path / "a.png") is None or tmp_path / "a.png",
            "-o",
            tmp_path / "b.png",
            "--device",
            "cuda",
        )
        == 2
    )
    assert "sees no CUDA device" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png") == 2
    assert capsys.readouterr().err == "pyops correct needs av: pip install '.[correct]'\n"


# ---- what cannot be done ---------------------------------------------------------------------------------------------


def test_each_fault_is_one_line_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/z.png")
    save(tmp_path / "in/bomb.png", np.zeros((101, 100, 3), np.uint8))
    save(tmp_path / "in/large.png", np.zeros((52, 100, 3), np.uint8))  # worth a warning of Pillow, no more
    save(tmp_path / "in/truncated.jpg", samples(60, 60, 3))
    whole = (tmp_path / "in/truncated.jpg").read_bytes()
    (tmp_path / "in/truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/text.jpg").write_text("no pixels")
    (tmp_path / "in/text.mp4").write_text("no frames")
    (tmp_path / "in/playlist.mp4").write_text(
        "#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/a.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "in/sequence.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/in/a.png\n")
    (tmp_path / "in/empty.png").touch()
    os.mkfifo(tmp_path / "in/pipe.png")
    frames = [Image.fromarray(samples(4, 4, 3)) for _ in range(3)]
    frames[0].save(tmp_path / "in/animation.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in/pages.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "in/float.tif")
    (tmp_path / "in/nothing").mkdir()
    monkeypatch.chdir(tmp_path)
    odd = "in/[red]two\nlines\x1b[2J.jpg"
    Path(odd).write_text("no pixels")

    assert run("in", "in/nothing", "in/missing.png", "in/missing.mp4", "-o", "out") == 1
    printed = capsys.readouterr()
    unknown = "neither a picture nor a video that can be read"
    expected = {
        "in/bomb.png": "DecompressionBombError: Image size (10100 pixels) exceeds limit",
        "in/truncated.jpg": "image file is truncated",
        "in/text.jpg": unknown,
        "in/text.mp4": unknown,
        "in/playlist.mp4": unknown,
        "in/sequence.mp4": unknown,
        "in/empty.png": "the file is empty",
        "in/pipe.png": "not a file",
        "in/animation.webp": "the file holds 3 pictures, expected one",
        "in/pages.tif": "the file holds 3 pictures, expected one",
        "in/float.tif": "its pixels have 32 bits, expected 8 or 16",
        "in/nothing": "no pictures or videos in this folder",
        "in/missing.png": "No such file or directory",
        "in/missing.mp4": "No such file or directory",
        "in/[red]two lines\\x1b[2J.jpg": unknown,
    }
    lines = dict(line.removeprefix("skipped ").split(": ", 1) for line in printed.err.splitlines())
    assert lines.keys() == expected.keys()
    assert not {name: line for name, line in lines.items() if not line.startswith(expected[name])}
    assert names(tmp_path / "out") == ["a.png", "large.png", "z.png"]
    assert f"3 done, {len(expected)} skipped" in printed.out


def test_16_bit_files_that_would_be_read_wrongly_are_refused(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    rgb, rgba = samples(32, 32, 3, dtype=np.uint16), samples(32, 32, 4, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "tiles.tif", rgb, photometric="rgb", tile=(16, 16))
    tifffile.imwrite(tmp_path / "premultiplied.tif", rgba, photometric="rgb", extrasamples=["assocalpha"])
    tifffile.imwrite(tmp_path / "white.tif", rgb[..., 0], photometric="miniswhite")
    tifffile.imwrite(tmp_path / "print.tif", rgba, photometric="separated")
    with open(tmp_path / "damaged.tif", "wb") as file:
        deep.write_tiff(file, rgb)
    content = bytearray((tmp_path / "damaged.tif").read_bytes())
    content[len(content) // 2] ^= 0x55
    (tmp_path / "damaged.tif").write_bytes(content)
    assert run(tmp_path, "-o", f"{tmp_path}/out/") == 1 and not (tmp_path / "out").exists()
    printed = capsys.readouterr().err
    for name in ("tiles", "premultiplied", "white", "print"):
        assert f"{name}.tif: TIFF of 16 bits with " in printed
    assert "damaged.tif: decoder error" in printed


def test_a_format_that_cannot_hold_the_picture(tmp_path, capsys):
    save(tmp_path / "a.png", samples(4, 4, 4))
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.jpg") == 1
    assert "JPEG cannot hold its transparency; AVIF, PNG, TIFF, WEBP can" in capsys.readouterr().err
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.mp4") == 1
    assert "a picture cannot be written as b.mp4" in capsys.readouterr().err
    save(tmp_path / "nameless.png")
    (tmp_path / "nameless.png").rename(tmp_path / "nameless")
    assert run(tmp_path / "nameless", "-o", f"{tmp_path}/out/") == 1
    assert "a picture cannot be written as nameless" in capsys.readouterr().err
    assert names(tmp_path) == ["a.png", "nameless"]


def test_unreadable_folder(tmp_path, monkeypatch, capsys):
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/locked/b.png")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 1
    assert capsys.readouterr().err == f"skipped {tmp_path}/in/locked: Permission denied\n"
    assert names(tmp_path / "out") == ["a.png"]


def test_result_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    assert run(tmp_path / "a.png", "-o", f"{tmp_path}/file/out/") == 1
    assert f"skipped {tmp_path}/a.png: Not a directory: {tmp_path}/file/out" in capsys.readouterr().err
    monkeypatch.setattr(Path, "mkdir", _denied)  # a superuser may write anywhere
    assert run(tmp_path / "a.png", "-o", f"{tmp_path}/out/") == 1
    assert f"skipped {tmp_path}/a.png: Read-only file system: {tmp_path}/out" in capsys.readouterr().err


def _denied(path, *args, **options):
    raise OSError(30, "Read-only file system", str(path))


@pytest.mark.parametrize(
    "failure", (OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt())
)
def test_no_half_written_picture(tmp_path, monkeypatch, capsys, failure):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    pixels = save(tmp_path / "out/a.png")
    right = ImageFile._save

    def fail(image, file, *args, **options):
        file.write(b"half of it")
        raise failure

    monkeypatch.setattr(ImageFile, "_save", fail)
    status = run(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out", "--force")
    assert status == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    assert names(tmp_path / "out") == ["a.png"] and np.array_equal(load(tmp_path / "out/a.png"), pixels)
    monkeypatch.setattr(ImageFile, "_save", right)
    assert run(tmp_path / "a.png", "-o", tmp_path / "out", "--force") == 0
