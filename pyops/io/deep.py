"""Pictures of 16 bits a channel, which Pillow would cut to 8: PNG and TIFF, with PyAV; and TIFF of any depth."""

from __future__ import annotations

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin

LAYOUTS = ("gray16", "ya16", "rgb48", "rgba64")  # of one to four channels, as FFmpeg calls them
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_deep(image: Image.Image) -> bool:
    """Whether a file that Pillow has opened, and not loaded, has colours of 16 bits.

    Raises:
        ValueError: it has, but neither Pillow nor FFmpeg would read them rightly.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        return image.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in image.tile)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    if max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) != 16 or image.mode in ("I", "F"):
        return False
    grey = image.mode.startswith("I;16")
    faults = {
        "black and white exchanged": grey and tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 0,
        "colours that are not RGB": not grey and tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] != 2,
        "tiles": not grey and TiffImagePlugin.TILEWIDTH in tags,
        "premultiplied transparency": 1 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()),
    }
    if any(faults.values()):
        found = ", ".join(fault for fault, is_there in faults.items() if is_there)
        raise ValueError(f"TIFF of 16 bits with {found}: not supported")
    return not grey


def read(path: str | os.PathLike[str], format: str) -> NDArray[np.uint16]:
    """The samples of a PNG or TIFF, `[H, W, C]`, as stored: not turned upright."""
    import av

    codec: Any = av.CodecContext.create(format.lower(), "r")
    frames = [*codec.decode(av.Packet(Path(path).read_bytes())), *codec.decode(None)]
    if not frames:
        raise OSError(f"this {format} file holds no picture that FFmpeg can read")
    frame = frames[0]
    layout, order = frame.format.name[:-2], frame.format.name[-2:]
    if layout not in LAYOUTS:
        raise ValueError(f"{format} of pixel format {frame.format.name}: not supported")
    plane, channels = frame.planes[0], 1 + LAYOUTS.index(layout)
    rows = np.frombuffer(plane, "<u2" if order == "le" else ">u2").reshape(-1, plane.line_size // 2)
    rows = rows[: frame.height, : frame.width * channels]
    return rows.reshape(frame.height, frame.width, channels).astype(np.uint16)


def write_png(
    file: IO[bytes],
    samples: NDArray[np.uint16],
    *,
    exif: bytes = b"",
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write `samples [H, W, C]`: grey, grey and alpha, RGB, or RGBA."""
    import av

    height, width, channels = samples.shape
    frame = av.VideoFrame(width, height, f"{LAYOUTS[channels - 1]}be")
    plane = frame.planes[0]
    rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // 2), ">u2")
    rows[:height, : width * channels] = samples.reshape(height, -1)
    plane.update(rows.tobytes())
    codec: Any = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, frame.format.name
    codec.time_base = Fraction(1)
    codec.options = {"pred": "mixed"}
    encoded = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])

    header, *data, end = (chunk for chunk in _png_chunks(encoded) if chunk[0] in (b"IHDR", b"IDAT", b"IEND"))
    described = []
    if icc_profile:
        described.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
    if dpi:
        x, y = (round(dots / 0.0254) for dots in dpi)
        described.append((b"pHYs", struct.pack(">IIB", x, y, 1)))
    if exif:
        described.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    file.write(PNG_SIGNATURE)
    for name, content in (header, *described, *data, end):
        checksum = zlib.crc32(name + content)
        file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum))


def write_tiff(
    file: IO[bytes],
    samples: NDArray[Any],
    *,
    exif: bytes = b"",
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write `samples [H, W, C]`, uint8 or uint16: grey, grey and alpha, RGB, or RGBA; compressed without loss."""
    height, width, channels = samples.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    described = Image.Exif()
    described.load(exif)
    for tag in described:
        tags[tag] = described.get_ifd(tag) or described[tag]
    if dpi:
        tags[TiffImagePlugin.RESOLUTION_UNIT] = 2  # inches
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = dpi
    if icc_profile:
        tags[TiffImagePlugin.ICCPROFILE] = icc_profile

    differences = samples.astype(samples.dtype.newbyteorder("<"))
    differences[:, 1:] -= samples[:, :-1]
    data = zlib.compress(differences.tobytes())
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (8 * samples.itemsize,) * channels
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels < 3 else 2
    tags[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    tags[TiffImagePlugin.COMPRESSION], tags[TiffImagePlugin.PREDICTOR] = 8, 2
    if channels in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # transparency that the colours are not multiplied with
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = len(data)
    tags.tagtype[TiffImagePlugin.STRIPOFFSETS] = (
        4  # LONG; counts from the end of the tags, where save() puts it
    )
    tags[TiffImagePlugin.STRIPOFFSETS] = 0
    tags.save(file)
    file.write(data)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], len(PNG_SIGNATURE)
    while place < len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        chunks.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks
