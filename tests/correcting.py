"""What the tests of `pyops correct` share: a model whose results are known, and small pictures and videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from pyops import cli, models

Image = pytest.importorskip("PIL.Image")
av = pytest.importorskip("av")
pytest.importorskip("rich")
Flags = pytest.importorskip("av.codec.context").Flags

GENERATOR = np.random.default_rng(0)


class Halving:
    """A model whose results are known: half of every value, rounded down."""

    def __init__(self):
        self.found: list[torch.Tensor] = []
        self.used: list[torch.Tensor | None] = []

    def to(self, device):
        return self

    def lut_weights(self, image):
        self.found.append(image.float().mean((2, 3)))
        return self.found[-1]

    def __call__(self, image, *, lut_weights=None):
        self.used.append(lut_weights)
        return (image.to(torch.int32) // 2).to(image.dtype)


class Copying(Halving):
    """A model that changes nothing."""

    def __call__(self, image, *, lut_weights=None):
        return image


def run(*options: object, model: Halving | None = None) -> int:
    """The exit status of `pyops correct`, with another model than the one that comes along."""
    with mock.patch.object(models.CoTF, "pretrained", lambda: model or Halving()):
        return cli.main(["correct", *map(str, options)])


def names(folder: Path) -> list[str]:
    """Of all files within."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def samples(*shape: int, dtype=np.uint8) -> np.ndarray:
    return GENERATOR.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save(path: Path, pixels: np.ndarray | None = None, **options) -> np.ndarray:
    """Write a picture, of noise if nothing else is given; its pixels."""
    if pixels is None:
        pixels = samples(6, 9, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


# ---- videos ----------------------------------------------------------------------------------------------------------

SOURCES = {  # container: its name at FFmpeg, codecs
    ".mp4": ("mp4", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
    ".avi": ("avi", "mpeg4", "libmp3lame"),
    ".ts": ("mpegts", "libx264", "aac"),
}
RATE = Fraction(30000, 1001)
LIMITED, FULL = 1, 2


def scene(count: int = 5, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frames of soft colours that grow lighter."""
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    rgb = np.stack([40 + 100 * x + 0 * y, 150 - 90 * y + 0 * x, 60 + 80 * x * y], -1)
    return [(rgb + 10 * index).round().astype(np.uint8) for index in range(count)]


def film(
    path: Path,
    frames: list[np.ndarray],
    *,
    times: list[int] | None = None,
    time_base: Fraction = 1 / RATE,
    matrix: int | None = None,
    color_range: int = LIMITED,
    pix_fmt: str = "yuv420p",
    sound: bool = False,
    rotation: tuple[float, bool] | None = None,
    aspect: Fraction | None = None,
) -> None:
    """Write a video; `times` in units of `time_base`, the last is its end; `rotation` in degrees, mirrored after it."""
    format, codec, sound_codec = SOURCES[path.suffix]
    if not {codec, sound_codec} <= av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec} or {sound_codec}")
    options = {"avoid_negative_ts": "disabled"} if format == "avi" else {}
    with av.open(f"file:{path}", "w", format=format, container_options=options) as container:
        container.metadata["title"] = "A film"
        options = {"crf": "12"} if codec == "libx264" else {"crf": "20", "b": "0", "cpu-used": "8"}
        stream = container.add_stream(codec, rate=RATE, options=options if codec != "mpeg4" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.time_base = time_base
        context.flags |= Flags.frame_duration
        if codec == "mpeg4":
            context.qscale, context.global_quality = True, 2 * 118
        if matrix is not None:
            context.colorspace, context.color_range = matrix, color_range
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if rotation is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write rotations")
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        tone = container.add_stream(sound_codec, rate=48000) if sound else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix or 5, dst_color_range=color_range)
            frame.pts, frame.time_base = index, time_base
            if times is not None:
                frame.pts, frame.duration = times[index], times[index + 1] - times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            wave = np.sin(np.arange(24000) / 20).astype(np.float32)[None].repeat(2, 0) / 4
            resampler = av.AudioResampler(format=tone.format, layout="stereo", rate=48000, frame_size=1152)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(tone.encode(part))
            container.mux(tone.encode(None))


def watch(path: Path) -> list[np.ndarray]:
    """The frames of a video, RGB, as they are stored."""
    with av.open(f"file:{path}") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
