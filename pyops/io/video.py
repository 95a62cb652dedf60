"""Videos frame by frame, with PyAV: decode, change, encode; sound is copied, times are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from pyops.io.images import upright

CONTAINERS = {
    **dict.fromkeys((".mp4", ".m4v"), "mp4"),
    **{".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".ts": "mpegts"},
}
# Visually without loss. The decoder's whitelist keeps out playlists, which would open other files and addresses.
_ENCODERS = {"libx264": {"crf": "18"}, "libvpx-vp9": {"crf": "24", "b": "0", "row-mt": "1", "cpu-used": "4"}}
_READABLE = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,yuv4mpegpipe"
_SCALING = (
    0x4 | 0x2000 | 0x4000 | 0x40000
)  # bicubic, chroma at full resolution both ways, accurate: no drift to dark
_RGB, _BT709, _BT601, _BT2020 = 0, 1, 5, 9  # matrices from RGB to YCbCr, as FFmpeg numbers them
_KNOWN_MATRICES = (_BT709, 4, _BT601, 6, 7, _BT2020)


@contextmanager
def open_video(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A video to read.

    Raises:
        ValueError: the file holds no video that FFmpeg can read.
        OSError: the file cannot be read.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": _READABLE}
    try:
        container = av.open(f"file:{os.fspath(path)}", container_options=options)
    except (av.error.LookupError, ValueError) as error:  # such as those of a format that is not in the list
        raise ValueError("neither a picture nor a video that can be read") from error
    with container:
        if not container.streams.video:
            raise ValueError("the file holds no video")
        yield container


def frame_count(path: str | os.PathLike[str]) -> int | None:
    """How many frames a video says it has; None where it does not say."""
    with open_video(path) as source:
        video = source.streams.video[0]
        if video.frames:
            return video.frames
        rate, duration = video.average_rate, source.duration
        return round(duration * rate / av.time_base) if rate and duration else None


def transcode(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: str,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> int:
    """Write a video anew with every frame changed, one at a time, so that memory does not grow with its length.

    Convention: frames come upright, so the result needs no rotation. Chroma is halved in both directions; odd sizes
    are made even by one more column or row, like the last. The result has the matrix of the source, where none is
    named the customary one, and the limited range. The codec is H.264, or MPEG-4 in AVI and where this FFmpeg cannot
    encode H.264, or VP9 in WebM; 8 bits. Subtitles are left out.

    Args:
        target: the new file.
        format: one of the values of `CONTAINERS`. AVI has no room for varying frame rates.
        change: a frame `[H, W, 3]` to another, always of one size.

    Returns:
        How many frames there were.

    Raises:
        ValueError: the source holds no frames, or the container cannot hold its sound.
        OSError: a file cannot be read or written, or is damaged.
    """
    # Sound may begin before 0, to be cut there; AVI, which counts frames, would move the frames to make room for it.
    options = {"avoid_negative_ts": "disabled"} if format == "avi" else {}
    name = f"file:{os.fspath(target)}"
    with open_video(path) as source, av.open(name, "w", format=format, container_options=options) as sink:
        video = source.streams.video[0]
        video.thread_type = "AUTO"
        sink.metadata.update(source.metadata)
        encoder, sounds, waiting, count = None, {}, [], 0
        for packet in source.demux(video, *source.streams.audio):
            if packet.stream is not video:
                waiting += [packet] if packet.dts is not None else []
            else:
                for frame in packet.decode():
                    pixels = change(_decoded(frame))
                    if encoder is None:
                        encoder = _Encoder(sink, format, video, frame, pixels.shape)
                        sounds = {sound.index: _copy(sink, sound) for sound in source.streams.audio}
                    sink.mux(encoder.encode(frame, pixels))
                    count += 1
            # A container takes no packet before it knows all of its streams.
            while encoder is not None and waiting:
                sound = waiting.pop(0)
                sound.stream = sounds[sound.stream.index]
                sink.mux(sound)
        if encoder is None:
            raise ValueError("the video holds no frames")
        sink.mux(encoder.encode(None, None))
    return count


def _copy(sink: Any, sound: Any) -> Any:
    """The stream of a container being written that takes the packets of another stream as they are."""
    copy = sink.add_stream_from_template(sound)
    copy.metadata.update(sound.metadata)
    return copy


class _Encoder:
    """The video stream of a container that is being written."""

    def __init__(self, sink: Any, format: str, video: Any, frame: Any, shape: tuple[int, ...]) -> None:
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        name = _codec(format)
        self.time_base = _time_base(format, name, video, rate)
        self.duration = 1 / rate
        self.shape, self.next_time = shape, Fraction(0)
        stream = self.stream = sink.add_stream(name, rate=rate, options=_ENCODERS.get(name))
        stream.height, stream.width = (size + size % 2 for size in shape[:2])
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = self.time_base
        context.flags |= Flags.frame_duration
        if name == "mpeg4":  # whose quantiser FFmpeg counts in units of 1 / 118
            context.qscale, context.global_quality = True, 3 * 118
        aspect = video.sample_aspect_ratio
        if aspect:
            context.sample_aspect_ratio = 1 / aspect if _turns(frame)[0] else aspect
        self.matrix = _matrix(frame)
        context.colorspace, context.color_range = self.matrix, ColorRange.MPEG
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc

    def encode(self, frame: Any, pixels: NDArray[np.uint8] | None) -> list[Any]:
        """The packets that come of a changed frame; without one, those still inside."""
        if pixels is None:
            return self.stream.encode(None)
        if pixels.shape != self.shape:
            raise ValueError(f"frames change their size from {self.shape[:2]} to {pixels.shape[:2]}")
        missing = [(0, size % 2) for size in pixels.shape[:2]]
        if any(missing[0] + missing[1]):
            pixels = np.pad(pixels, [*missing, (0, 0)], "edge")
        encoded = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        encoded.colorspace = self.matrix  # and not dst_colorspace, which knows fewer
        encoded = encoded.reformat(format="yuv420p", dst_color_range=ColorRange.MPEG, interpolation=_SCALING)
        time = self.next_time if frame.pts is None else frame.pts * frame.time_base
        encoded.pts, encoded.time_base = round(time / self.time_base), self.time_base
        encoded.duration = round(frame.duration * frame.time_base / self.time_base)
        self.next_time = time + self.duration
        return self.stream.encode(encoded)


def _decoded(frame: Any) -> NDArray[np.uint8]:
    """`[H, W, 3]`, RGB, upright."""
    if not frame.format.is_rgb and frame.colorspace not in _KNOWN_MATRICES:
        frame.colorspace = _matrix(frame)
    return upright(frame.to_ndarray(format="rgb24", interpolation=_SCALING), *_turns(frame))


def _matrix(frame: Any) -> int:
    """From RGB to YCbCr; where the frame does not say, as players suppose: BT.709 from 720 lines on."""
    if frame.colorspace in _KNOWN_MATRICES:
        return frame.colorspace
    full_range = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return _BT709 if frame.height >= 720 and not full_range else _BT601


def _turns(frame: Any) -> tuple[bool, bool, bool]:
    """What `upright` needs: from the display matrix, by multiples of a quarter turn, mirrored or not."""
    try:
        matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    except KeyError:
        return False, False, False
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))  # (x, y) is shown at (a x + c y, b x + d y)
    transpose = abs(b) + abs(c) > abs(a) + abs(d)
    return transpose, (b if transpose else d) < 0, (c if transpose else a) < 0


def _codec(format: str) -> str:
    if format == "webm":
        return "libvpx-vp9"
    # AVI orders frames by their place in the file, which H.264 changes.
    return "libx264" if format != "avi" and "libx264" in av.codecs_available else "mpeg4"


def _time_base(format: str, codec: str, video: Any, rate: Fraction) -> Fraction:
    if format == "avi":
        return 1 / rate
    if codec == "mpeg4" and video.time_base.denominator > 65535:
        return Fraction(1, 60000)  # MPEG-4 can count no finer, and the usual rates divide this
    return video.time_base
