"""Pictures through `pyops correct`: the result is the model's, and everything else is as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from correcting import Halving, Image, load, run, samples, save
from PIL import ImageCms, ImageOps

from pyops import cli, models
from pyops.io import deep, images

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_the_model_of_a_checkpoint(tmp_path, capsys):
    network = models.CoTF().eval()
    torch.save(network.state_dict(), tmp_path / "own.pt")
    pixels = save(tmp_path / "a.png", samples(40, 30, 3))
    options = ("--weights", tmp_path / "own.pt", "--device", "cpu")
    assert cli.main(["correct", *map(str, (tmp_path / "a.png", "-o", tmp_path / "b.png", *options))]) == 0
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(load(tmp_path / "b.png"), expected) and not np.array_equal(expected, pixels)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("1 done, 0 skipped", "pictures", "megapixels", "ms/megapixel"))


@pytest.mark.parametrize("suffix", sorted(images.FORMATS))
def test_every_format(tmp_path, suffix):
    pixels = np.full((24, 16, 3), (200, 120, 40), np.uint8)
    save(tmp_path / "a.png", pixels)
    assert run(tmp_path / "a.png", "-o", tmp_path / f"b{suffix}") == 0
    assert run(tmp_path / f"b{suffix}", "-o", tmp_path / "c.png") == 0
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.format == images.FORMATS[suffix] and image.mode == "RGB"
    assert abs(load(tmp_path / f"b{suffix}").astype(int) - pixels // 2).max() <= 2
    assert abs(load(tmp_path / "c.png").astype(int) - pixels // 4).max() <= 2


@pytest.mark.parametrize("suffix", (".png", ".tif"))
@pytest.mark.parametrize("mode", ("RGB", "RGBA", "L", "LA"))
def test_channels(tmp_path, suffix, mode):
    pixels = samples(6, 9, len(mode)).squeeze()
    save(tmp_path / f"a{suffix}", pixels)
    assert run(tmp_path / f"a{suffix}", "-o", tmp_path / f"b{suffix}") == 0
    expected = pixels // 2
    if mode[-1] == "A":
        expected[..., -1] = pixels[..., -1]
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.mode == mode and np.array_equal(np.array(image), expected)


@pytest.mark.parametrize("suffix", (".png", ".tif"))
@pytest.mark.parametrize("channels", (1, 2, 3, 4))
def test_16_bits_are_kept(tmp_path, suffix, channels):
    pixels = samples(7, 5, channels, dtype=np.uint16)
    with open(tmp_path / "a.png", "wb") as file:
        deep.write_png(file, pixels)
    assert run(tmp_path / "a.png", "-o", tmp_path / f"b{suffix}") == 0
    expected = pixels // 2
    if channels in (2, 4):
        expected[..., -1] = pixels[..., -1]
    if suffix == ".tif":
        result = pytest.importorskip("tifffile").imread(tmp_path / "b.tif").reshape(pixels.shape)
    else:
        result = deep.read(tmp_path / "b.png", "PNG")
    assert result.dtype == np.uint16 and np.array_equal(result, expected)
    if (suffix, channels) != (".tif", 2):  # Pillow does not know this one
        assert run(tmp_path / f"b{suffix}", "-o", tmp_path / "c.png") == 0
        assert np.array_equal(deep.read(tmp_path / "c.png", "PNG")[..., 0], expected[..., 0] // 2)


def test_16_bits_to_8_are_rounded(tmp_path):
    values = np.repeat(np.arange(0, 65536, 127, dtype=np.uint16)[None, :, None], 3, 2)
    with open(tmp_path / "a.png", "wb") as file:
        deep.write_png(file, values)
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.bmp") == 0
    assert np.array_equal(load(tmp_path / "b.bmp"), np.rint(values // 2 / 257).astype(np.uint8))


def test_16_bits_of_foreign_files(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = samples(20, 30, 3, dtype=np.uint16)
    kinds = {"plain": {}, "big": {"byteorder": ">"}, "strips": {"rowsperstrip": 3, "compression": "zlib"}}
    kinds["difference"] = {"compression": "zlib", "predictor": True}
    for name, options in kinds.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", **options)
    assert run(*tmp_path.glob("*.tif"), "-o", tmp_path / "out") == 0
    for name in kinds:
        assert np.array_equal(tifffile.imread(tmp_path / "out" / f"{name}.tif"), pixels // 2), name


def test_modes_that_are_converted(tmp_path):
    grey = samples(6, 9)
    Image.fromarray(grey > 127).save(tmp_path / "bits.png")
    palette = Image.fromarray(samples(6, 9, 3)).quantize(16)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "key.png", transparency=3)
    key = Image.fromarray(np.full((2, 2, 3), 80, np.uint8))
    key.save(tmp_path / "colour_key.png", transparency=(80, 80, 80))
    cmyk = Image.fromarray(np.full((16, 16, 3), (200, 120, 40), np.uint8)).convert("CMYK")
    cmyk.save(tmp_path / "print.jpg", quality=100)
    cmyk.save(tmp_path / "damaged_profile.jpg", quality=100, icc_profile=b"no profile")
    Image.fromarray(grey.astype(np.uint16) * 257).convert("I").save(tmp_path / "deep.pgm")
    assert run(*sorted(tmp_path.iterdir()), "-o", tmp_path / "out") == 0
    expected = {
        "bits.png": ("L", (grey > 127) * 127),
        "palette.png": ("RGB", np.array(palette.convert("RGB")) // 2),
        "colour_key.png": ("RGBA", np.tile(np.array([40, 40, 40, 0]), (2, 2, 1))),
        "deep.pgm": ("L", np.rint(grey.astype(int) * 257 // 2 / 257)),
    }
    for name, (mode, pixels) in expected.items():
        with Image.open(tmp_path / "out" / name) as image:
            assert image.mode == mode and np.array_equal(np.array(image), pixels), name
    result = load(tmp_path / "out" / "key.png")
    assert np.array_equal(result[..., 3] == 0, np.array(palette) == 3)
    for name in ("print.jpg", "damaged_profile.jpg"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.mode == "RGB" and "icc_profile" not in image.info
            assert abs(np.array(image).astype(int) - (100, 60, 20)).max() <= 3


def test_cmyk_goes_through_its_profile(tmp_path, monkeypatch):
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg", icc_profile=SRGB)
    seen = []
    converted = Image.new("RGB", (4, 4), (10, 20, 30))
    monkeypatch.setattr(ImageCms, "profileToProfile", lambda *args, **options: seen.append(args) or converted)
    assert run(tmp_path / "a.jpg", "-o", tmp_path / "b.png") == 0
    assert seen[0][1].tobytes() == SRGB and load(tmp_path / "b.png")[0, 0].tolist() == [5, 10, 15]


def test_grey_stays_grey_whatever_the_model_does(tmp_path, monkeypatch):
    tint = torch.tensor([10, 100, 200], dtype=torch.uint8)
    monkeypatch.setattr(
        Halving, "__call__", lambda self, image, **_: tint.view(1, 3, 1, 1).expand(image.shape).clone()
    )
    save(tmp_path / "a.png", samples(5, 4))
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png") == 0
    luminance = round(0.299 * 10 + 0.587 * 100 + 0.114 * 200)
    assert np.array_equal(load(tmp_path / "b.png"), np.full((5, 4), luminance))


@pytest.mark.parametrize("kind", ("a.png", "a.tif", "deep.png", "deep.tif"))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = samples(3, 5, 3, dtype=np.uint16 if kind.startswith("deep") else np.uint8)
    with open(tmp_path / kind, "wb") as file:
        (deep.write_tiff if kind.endswith("tif") else _png)(file, pixels, exif=exif.tobytes())
    assert run(tmp_path / kind, "-o", tmp_path / "b.png") == 0
    plane = Image.fromarray(pixels[..., 0])
    plane.info["exif"] = exif.tobytes()
    expected = np.array(ImageOps.exif_transpose(plane)) // 2
    result = deep.read(tmp_path / "b.png", "PNG") if kind.startswith("deep") else load(tmp_path / "b.png")
    assert np.array_equal(result[..., 0], expected)
    with Image.open(tmp_path / "b.png") as image:
        assert 0x0112 not in image.getexif()


def _png(file, pixels, *, exif):
    if pixels.dtype == np.uint16:
        deep.write_png(file, pixels, exif=exif)
    else:
        Image.fromarray(pixels).save(file, "PNG", exif=exif)


@pytest.mark.parametrize("bits", (8, 16))
@pytest.mark.parametrize("suffix", (".jpg", ".png", ".tif", ".webp"))
def test_what_is_kept_of_metadata(tmp_path, suffix, bits):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0131] = "Maker", 6, "Camera 1.0"
    exif[0x8769] = {0x829A: 0.01, 0x9003: "2020:01:02 03:04:05", 0xA002: 9}  # exposure time, date; width
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    pixels = samples(6, 9, 3, dtype=np.uint16 if bits == 16 else np.uint8)
    xmp = b'<x:xmpmeta tiff:Orientation="6"/>'
    with open(tmp_path / f"a{suffix if bits == 8 else '.png'}", "wb") as file:
        if bits == 16:
            deep.write_png(file, pixels, exif=exif.tobytes(), icc_profile=SRGB, dpi=(300, 300))
        else:
            options = {"xmp": xmp} if suffix in (".jpg", ".webp") else {}
            image = Image.fromarray(pixels)
            image.save(
                file, images.FORMATS[suffix], exif=exif.tobytes(), icc_profile=SRGB, dpi=(300, 300), **options
            )
    assert run(file.name, "-o", tmp_path / f"b{suffix}") == 0
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.size == (6, 9) and image.info["icc_profile"] == SRGB
        assert suffix == ".webp" or image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        found = image.getexif()
        assert found[0x010F] == "Maker" and found[0x0131] == "Camera 1.0" and 0x0112 not in found
        assert found.get_ifd(0x8769) == {0x829A: 0.01, 0x9003: "2020:01:02 03:04:05"}
        assert found.get_ifd(0x8825) == {1: "N", 2: (1.0, 2.0, 3.0)}
        if bits == 8 and suffix in (".jpg", ".webp"):
            assert image.info["xmp"] == b"<x:xmpmeta />"


def test_old_thumbnail_and_damaged_exif_are_left_out(tmp_path):
    thumbnail = b"\xff\xd8 the uncorrected picture in small \xff\xd9"
    # A directory of no entries, then one with the thumbnail's place and length.
    tags = b"II*\0\x08\0\0\0" + b"\0\0\x0e\0\0\0" + b"\x02\0"
    tags += (
        b"\x01\x02\x04\0\x01\0\0\0\x2c\0\0\0" + b"\x02\x02\x04\0\x01\0\0\0" + bytes([len(thumbnail), 0, 0, 0])
    )
    save(tmp_path / "thumbnail.jpg", exif=b"Exif\0\0" + tags + b"\0\0\0\0" + thumbnail)
    maker_of_two_numbers = b"II*\0\x08\0\0\0" + b"\x01\0\x0f\x01\x05\0\x01\0\0\0\x05\0\0\0" + b"\0" * 8
    for suffix in (".jpg", ".png"):
        save(tmp_path / f"nonsense{suffix}", exif=b"Exif\0\0XX nothing of use")
        save(tmp_path / f"wrong_kind{suffix}", exif=b"Exif\0\0" + maker_of_two_numbers)
    assert thumbnail in (tmp_path / "thumbnail.jpg").read_bytes()
    assert run(*tmp_path.iterdir(), "-o", tmp_path / "out") == 0
    assert thumbnail not in (tmp_path / "out" / "thumbnail.jpg").read_bytes()


def test_grey_profile_does_not_go_into_colour_files(tmp_path):
    save(tmp_path / "a.png", samples(8, 8), icc_profile=SRGB)
    assert (
        run(tmp_path / "a.png", "-o", tmp_path / "b.png")
        == run(tmp_path / "a.png", "-o", tmp_path / "b.webp")
        == 0
    )
    with Image.open(tmp_path / "b.png") as image, Image.open(tmp_path / "b.webp") as coloured:
        assert "icc_profile" in image.info and "icc_profile" not in coloured.info


def test_compare(tmp_path):
    pixels = save(tmp_path / "a.png", samples(6, 9, 4))
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.png", "--compare") == 0
    result = load(tmp_path / "b.png")
    assert result.shape == (6, 18, 4) and np.array_equal(result[:, :9], pixels)
    assert np.array_equal(result[:, 9:, :3], pixels[..., :3] // 2) and np.array_equal(
        result[:, 9:, 3], pixels[..., 3]
    )


def test_quality(tmp_path):
    save(tmp_path / "a.png", samples(64, 64, 3))
    sizes = []
    for quality in (30, 92, 99):
        assert run(tmp_path / "a.png", "-o", tmp_path / "b.jpg", "--quality", quality, "--force") == 0
        sizes.append((tmp_path / "b.jpg").stat().st_size)
    assert run(tmp_path / "a.png", "-o", tmp_path / "b.jpg", "--force") == 0
    assert sizes[0] < sizes[1] < sizes[2] and (tmp_path / "b.jpg").stat().st_size == sizes[1]


@pytest.mark.gpu
def test_half_precision(tmp_path):
    torch.save(models.CoTF().state_dict(), tmp_path / "own.pt")
    save(tmp_path / "a.png", samples(64, 48, 3))
    for name, *options in (("cpu.png", "--device", "cpu"), ("half.png", "--device", "cuda", "--half")):
        assert run(tmp_path / "a.png", "-o", tmp_path / name, "--weights", tmp_path / "own.pt", *options) == 0
    assert abs(load(tmp_path / "cpu.png").astype(int) - load(tmp_path / "half.png")).max() <= 3
