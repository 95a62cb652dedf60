"""Pictures with what belongs to them: transparency, bit depth, colour profile, EXIF.

Pillow reads and writes them; it cuts 16-bit colours to 8, so `pyops.io.deep` takes its place there.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps

from pyops.io import deep

FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pnm"), "PPM"),
    **{".avif": "AVIF", ".bmp": "BMP", ".png": "PNG", ".webp": "WEBP"},
}
WITH_ALPHA = ("AVIF", "PNG", "TIFF", "WEBP")
WITH_16_BITS = ("PNG", "TIFF")
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as Pillow weighs colours

# Of EXIF: what the picture shows and who made it, with what. Not how the old file stored it, nor its old thumbnail.
_KEPT_TAGS = (
    *(
        "ImageDescription",
        "Make",
        "Model",
        "XResolution",
        "YResolution",
        "ResolutionUnit",
        "Software",
        "DateTime",
    ),
    *("Artist", "HostComputer", "Copyright", "Rating", "RatingPercent"),
    *("XPTitle", "XPComment", "XPAuthor", "XPKeywords", "XPSubject"),
)
_STALE_TAGS = ("ExifImageWidth", "ExifImageHeight", "ExifInteroperabilityOffset")


@dataclass(frozen=True)
class Picture:
    """A picture, upright, and what its file says about it."""

    colours: NDArray[Any]
    """`[H, W, 3]`, uint8 or uint16."""
    alpha: NDArray[Any] | None = None
    """`[H, W]`, of the same dtype."""
    grey: bool = False
    """The file has one channel: the luminance of `colours`."""
    exif: bytes = b""
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None

    def samples(self) -> NDArray[Any]:
        """`[H, W, C]` as the file holds them: grey or colour, then alpha if there is any."""
        samples = self.colours
        if self.grey:
            samples = np.rint(samples @ LUMINANCE).astype(samples.dtype)[..., None]
        return samples if self.alpha is None else np.concatenate([samples, self.alpha[..., None]], 2)


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether the content of a file is that of a picture, whatever its name."""
    try:
        with _quiet(), _open(path):
            return True
    except Image.UnidentifiedImageError:
        return False


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a picture and put it upright.

    Args:
        path: AVIF, BMP, JPEG, PNG, PPM, TIFF or WebP, known by its content. PNG and TIFF of 16 bits keep them.

    Returns:
        The picture. CMYK comes as RGB, through its colour profile if it has one; palettes come as RGB.

    Raises:
        ValueError: more than one picture, or pixels of a kind that is not supported.
        OSError: the file cannot be read or is damaged.
    """
    with _quiet(), _open(path) as image:
        count = getattr(image, "n_frames", 1)
        if count > 1 and image.format != "MPO":  # of a camera: the others are previews and depth
            raise ValueError(f"the file holds {count} pictures, expected one")
        is_deep = deep.is_deep(image)
        exif, orientation = _exif(image)
        image.load()  # with 16 bits too: Pillow notices damage that FFmpeg overlooks
        if is_deep:
            samples, profile, xmp = deep.read(path, image.format), image.info.get("icc_profile"), None
            samples = upright(samples, *_turns(orientation))
        else:
            if orientation != 1:
                ImageOps.exif_transpose(image, in_place=True)
            samples, profile = _samples(image)
            xmp = image.info.get("xmp")
            xmp = xmp if isinstance(xmp, bytes) else None
        dpi = image.info.get("dpi")
        dpi = (float(dpi[0]), float(dpi[1])) if dpi and all(0.5 < x < 65535 for x in dpi) else None
    if samples.ndim == 2:
        samples = samples[..., None]
    channels = samples.shape[2]
    return Picture(
        np.repeat(samples[..., :1], 3, 2) if channels < 3 else np.ascontiguousarray(samples[..., :3]),
        alpha=samples[..., -1] if channels in (2, 4) else None,
        grey=channels < 3,
        exif=exif,
        icc_profile=profile,
        xmp=xmp,
        dpi=dpi,
    )


def write_picture(file: IO[bytes], format: str, picture: Picture, *, quality: int = 92) -> None:
    """Write a picture to an open, empty file.

    Args:
        format: one of the values of `FORMATS`. Those that hold 8 bits get 8 bits, rounded.
        quality: of JPEG, WebP and AVIF, 1..100.

    Raises:
        ValueError: a transparent picture and a format that cannot hold it, or a size that it cannot hold.
    """
    if picture.alpha is not None and format not in WITH_ALPHA:
        raise ValueError(f"{format} cannot hold its transparency; {', '.join(WITH_ALPHA)} can")
    samples = picture.samples()
    if samples.dtype == np.uint16 and format not in WITH_16_BITS:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    # WebP and AVIF have no grey, and a profile of grey is not one of RGB.
    profile = None if picture.grey and format in ("AVIF", "WEBP") else picture.icc_profile
    if format == "TIFF":
        deep.write_tiff(file, samples, exif=picture.exif, icc_profile=profile, dpi=picture.dpi)
    elif samples.dtype == np.uint16:
        deep.write_png(file, samples, exif=picture.exif, icc_profile=profile, dpi=picture.dpi)
    else:
        options: dict[str, Any] = {"icc_profile": profile, "exif": picture.exif, "dpi": picture.dpi}
        if format in ("AVIF", "JPEG", "WEBP"):
            options |= {"quality": quality, "xmp": picture.xmp}
        if format == "JPEG":  # a marker ends after 64 KiB
            options |= {name: None for name in ("exif", "xmp") if len(options[name] or b"") > 65000}
        if format in ("AVIF", "JPEG") and quality >= 90:
            options["subsampling"] = "4:4:4"
        image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
        image.save(file, format, **{name: value for name, value in options.items() if value})


def upright(pixels: NDArray[Any], transpose: bool, flip_rows: bool, flip_columns: bool) -> NDArray[Any]:
    """Rows and columns of `[H, W, ...]` exchanged, then reversed; contiguous."""
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def side_by_side(left: Picture, right: Picture) -> Picture:
    """Two pictures of one height as one, with what the file of the left one says."""
    alpha = None
    if left.alpha is not None and right.alpha is not None:
        alpha = np.concatenate([left.alpha, right.alpha], 1)
    return replace(left, colours=np.concatenate([left.colours, right.colours], 1), alpha=alpha)


def _turns(orientation: int) -> tuple[bool, bool, bool]:
    """What `upright` needs, for an orientation of EXIF."""
    return orientation in (5, 6, 7, 8), orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def _open(path: str | os.PathLike[str]) -> Image.Image:
    Image.init()  # Pillow without AVIF does not know the word
    return Image.open(path, formats=[name for name in sorted(set(FORMATS.values())) if name in Image.OPEN])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of Pillow: large pictures are wanted, damaged EXIF is left out, all else is an error too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _samples(image: Image.Image) -> tuple[NDArray[Any], bytes | None]:
    """`[H, W]` or `[H, W, C]`, and the colour profile they are in."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image).astype(np.uint16), profile
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, expected 8 or 16")
    if image.mode == "CMYK":
        image, profile = _from_cmyk(image, profile), None
    transparent = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("LA" if transparent else "L")), profile
    return np.array(image.convert("RGBA" if transparent else "RGB")), profile


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    """In sRGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile: as if there were none
    return image.convert("RGB")


def _exif(image: Image.Image) -> tuple[bytes, int]:
    """What is kept of EXIF, which leaves out orientation, thumbnail and what else no longer holds; the orientation."""
    try:
        exif, kept = image.getexif(), Image.Exif()
        for tag in _numbers(_KEPT_TAGS):
            if tag in exif:
                kept[tag] = exif[tag]
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            content = dict(exif.get_ifd(directory))
            for tag in _numbers(_STALE_TAGS):
                content.pop(tag, None)
            if content:
                kept[directory] = content
        return kept.tobytes() if len(kept) else b"", exif.get(ExifTags.Base.Orientation, 1)
    except OSError:
        raise  # of the pixels: some formats have EXIF behind them
    except Exception:
        return b"", 1  # damaged: no reason to refuse the picture


def _numbers(names: Sequence[str]) -> list[int]:
    return [ExifTags.Base[name].value for name in names]
