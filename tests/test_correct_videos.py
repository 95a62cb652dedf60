"""Videos through `pyops correct`: every frame is the model's; times, sound and colours are as they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from correcting import FULL, LIMITED, SOURCES, Copying, Halving, av, film, names, run, save, scene, watch

from pyops import correct
from pyops.io import video

TICK = Fraction(1, 90000)
TIMES = [0, 3003, 6006, 12012, 24024, 27027, 90090]  # in ticks, the end is the last; the rate varies


def streams(path):
    """Seconds of each frame, length in seconds, time and content of each packet of sound, and the time base."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [frame.pts * frame.time_base for frame in frames]
    with av.open(str(path)) as container:
        sound = [packet for packet in container.demux(audio=0) if packet.dts is not None]
        packets = [(packet.pts * packet.time_base, bytes(packet)) for packet in sound]
        video = container.streams.video[0]
        return times, video.duration and video.duration * video.time_base, packets, video.time_base


@pytest.mark.parametrize("suffix", SOURCES)
def test_frames_times_and_sound(tmp_path, capsys, suffix):
    frames = scene(6)
    varying = {} if suffix == ".avi" else {"times": TIMES, "time_base": TICK}
    film(tmp_path / f"a{suffix}", frames, sound=True, **varying)
    assert run(tmp_path / f"a{suffix}", "-o", tmp_path / f"b{suffix}") == 0
    results = watch(tmp_path / f"b{suffix}")
    assert len(results) == len(frames)
    for frame, result in zip(frames, results, strict=True):
        difference = result.astype(int) - frame // 2
        assert abs(difference).mean() < 3 and abs(difference.mean()) < 2
    before, after = streams(tmp_path / f"a{suffix}"), streams(tmp_path / f"b{suffix}")
    assert after == before
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("1 done, 0 skipped", "videos", "6 frames", "frames/s"))


@pytest.mark.parametrize("suffix", (".mkv", ".mov", ".m4v", ".ts", ".avi"))
def test_into_another_container(tmp_path, suffix):
    film(tmp_path / "a.mp4", scene(6), sound=True)
    assert run(tmp_path / "a.mp4", "-o", tmp_path / f"b{suffix}") == 0
    (times, *_, sound, _), (expected, *_, content, _) = (
        streams(tmp_path / f"b{suffix}"),
        streams(tmp_path / "a.mp4"),
    )
    assert [float(t - times[0]) for t in times] == pytest.approx([float(t) for t in expected], abs=6e-4)
    assert len(sound) == len(content)
    for (_, copy), (_, original) in zip(sound, content, strict=True):
        assert copy.endswith(original)  # MPEG-TS puts a header before each packet
    with av.open(str(tmp_path / f"b{suffix}")) as container:
        assert container.streams.video[0].codec_context.name == ("mpeg4" if suffix == ".avi" else "h264")
        assert suffix == ".ts" or container.metadata["title"] == "A film"


def test_without_an_encoder_for_h264(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", scene(6), times=TIMES, time_base=TICK)
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    assert run(tmp_path / "a.mp4", "-o", tmp_path / "b.mp4") == 0
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert times == pytest.approx([float(time * TICK) for time in TIMES[:-1]], abs=1e-5)
    assert abs(watch(tmp_path / "b.mp4")[3].astype(int) - scene(6)[3] // 2).mean() < 3


WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # of red and blue


@pytest.mark.parametrize(
    "matrix, color_range, pix_fmt, height, expected",
    (
        (1, LIMITED, "yuv420p", 32, 1),
        (6, LIMITED, "yuv444p", 32, 6),
        (9, LIMITED, "yuv420p", 32, 9),
        (1, FULL, "yuv420p", 32, 1),
        (5, FULL, "yuvj420p", 32, 5),
        (2, LIMITED, "yuv420p", 32, 5),  # not named: of small pictures that of television
        (2, LIMITED, "yuv420p", 720, 1),
    ),
)
def test_colours(tmp_path, matrix, color_range, pix_fmt, height, expected):
    """The planes of the result, taken back with the formula of the matrix that it names, in the limited range."""
    colour = np.array([220, 40, 90])
    source = expected if matrix == 2 else matrix
    planes = av.VideoFrame(32, height, pix_fmt)
    for plane, value in zip(planes.planes, _ycbcr(colour, source, color_range), strict=True):
        plane.update(bytes([round(value)]) * plane.buffer_size)
    planes.colorspace, planes.color_range = matrix, color_range
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = height, 32, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        planes.pts, planes.time_base = 0, Fraction(1, 25)
        container.mux([*stream.encode(planes), *stream.encode(None)])
    assert run(tmp_path / "a.mp4", "-o", tmp_path / "b.mp4") == 0
    with av.open(str(tmp_path / "b.mp4")) as container:
        (frame,) = container.decode(video=0)
    assert (frame.format.name, frame.color_range) == ("yuv420p", LIMITED)
    assert WEIGHTS[frame.colorspace] == WEIGHTS[expected]
    found = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
    assert np.allclose(found, _ycbcr(colour // 2, expected, LIMITED), atol=1.5)


def _ycbcr(rgb, matrix, color_range):
    (red, blue), (r, g, b) = WEIGHTS[matrix], rgb / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / 2 / (1 - blue), (r - luma) / 2 / (1 - red)
    if color_range == FULL:
        return 255 * luma, *(128 + 255 * c for c in chroma)
    return 16 + 219 * luma, *(128 + 224 * c for c in chroma)


@pytest.mark.parametrize("degrees", (0, 90, 180, 270))
@pytest.mark.parametrize("mirrored", (False, True))
def test_rotation_is_applied(tmp_path, degrees, mirrored):
    frame = np.kron(np.array([[40, 90], [140, 200]], np.uint8), np.ones((16, 24), np.uint8))
    frame = frame[..., None].repeat(3, 2)
    film(tmp_path / "a.mp4", [frame] * 2, rotation=(degrees, mirrored), aspect=Fraction(4, 3))
    assert run(tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", model=Copying()) == 0
    expected = np.rot90(frame, degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    result = watch(tmp_path / "b.mp4")[0]
    assert result.shape == expected.shape and abs(result.astype(int) - expected).mean() < 3
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0
        aspect = container.streams.video[0].sample_aspect_ratio
    assert aspect == (Fraction(4, 3) if degrees % 180 == 0 else Fraction(3, 4))


@pytest.mark.parametrize("height, width", ((31, 48), (32, 47), (31, 47)))
def test_odd_sizes(tmp_path, height, width):
    film(tmp_path / "a.mkv", scene(2, height, width), pix_fmt="yuv444p")
    for options, factor in ((), 1), (("--compare",), 2):
        assert run(tmp_path / "a.mkv", "-o", tmp_path / "b.mp4", "--force", *options) == 0
        result = watch(tmp_path / "b.mp4")[0]
        assert result.shape == (height + height % 2, (factor * width + 1) // 2 * 2, 3)
        inner = result[:height, (factor - 1) * width : factor * width].astype(int)
        assert abs(inner - scene(1, height, width)[0] // 2).mean() < 3
        if width % 2 and factor == 1:
            assert abs(result[:height, -1].astype(int) - result[:height, -2]).mean() < 3


def test_compare(tmp_path):
    frames = scene(3)
    film(tmp_path / "a.mp4", frames)
    assert run(tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", "--compare") == 0
    for frame, result in zip(frames, watch(tmp_path / "b.mp4"), strict=True):
        assert abs(result[:, :48].astype(int) - frame).mean() < 3
        assert abs(result[:, 48:].astype(int) - frame // 2).mean() < 3


def test_smooth(tmp_path):
    film(tmp_path / "a.mp4", scene(4))
    plain, smooth = Halving(), Halving()
    assert run(tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", model=plain) == 0
    assert plain.used == [None] * 4
    assert (
        run(tmp_path / "a.mp4", tmp_path / "a.mp4", "-o", tmp_path / "c/", "--smooth", 0.8, model=smooth) == 1
    )
    assert len(smooth.used) == len(smooth.found) == 4 and torch.equal(smooth.used[0], smooth.found[0])
    for before, found, used in zip(smooth.used, smooth.found[1:], smooth.used[1:], strict=False):
        assert torch.allclose(used, 0.8 * before + 0.2 * found) and not torch.allclose(used, found, atol=1)


def test_smoothing_starts_anew_with_a_scene():
    smoothing = correct.Smoothing(0.75)
    scenes = torch.rand(2, 1, 3, 40, 50)
    first, second, third, fourth = torch.rand(4, 1, 3)
    assert torch.equal(smoothing(first, scenes[0]), first)
    expected = 0.75 * first + 0.25 * second
    assert torch.allclose(smoothing(second, 0.3 * scenes[0] + 0.2), expected), "the same in another light"
    assert torch.allclose(smoothing(third, 0.9 * scenes[0]), 0.75 * expected + 0.25 * third)
    assert torch.equal(smoothing(fourth, scenes[1]), fourth)
    assert torch.equal(smoothing(first, torch.zeros(1, 3, 40, 50)), first)


def test_memory_does_not_grow_with_the_video(tmp_path):
    film(tmp_path / "a.mp4", scene(5) * 12)
    alive, most = [], 0

    def change(frame):
        nonlocal most
        result = frame // 2
        alive.extend(map(weakref.ref, (frame, result)))
        most = max(most, sum(array() is not None for array in alive))
        return result

    assert video.transcode(tmp_path / "a.mp4", tmp_path / "b.mp4", "mp4", change) == 60
    assert most <= 6


def test_names_that_ffmpeg_would_interpret(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "concat:%03d [a].mp4", scene(2))
    assert run("concat:%03d [a].mp4", "-o", "http:%d/b%d.mp4") == 0
    assert len(watch(tmp_path / "http:%d/b%d.mp4")) == 2


def test_content_counts_and_not_the_name(tmp_path):
    film(tmp_path / "a.mkv", scene(2))
    (tmp_path / "a.mkv").rename(tmp_path / "a.jpg")
    save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.mp4")
    assert run(tmp_path / "a.jpg", "-o", tmp_path / "c.mp4") == 0 and len(watch(tmp_path / "c.mp4")) == 2
    assert run(tmp_path / "b.mp4", "-o", tmp_path / "c.png") == 0


# ---- what cannot be done ---------------------------------------------------------------------------------------------


def test_faults(tmp_path, capsys):
    for name in ("good.mp4", "sound.mp4", "cut.mp4"):
        film(tmp_path / name, scene(3), sound=True)
    content = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with av.open(str(tmp_path / "sound.mp4")) as source, av.open(str(tmp_path / "only.mp4"), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    unknown = "neither a picture nor a video that can be read"
    for name, target, message in (
        ("cut.mp4", "b.mp4", unknown),
        ("only.mp4", "b.mp4", "the file holds no video"),
        ("good.mp4", "b.png", "a video cannot be written as b.png"),
        ("good.mp4", "b.webm", "format does not support"),
        ("good.mp4", "good.mp4", "would overwrite an input"),
    ):
        assert run(tmp_path / name, "-o", tmp_path / target, "--force") == 1
        line = capsys.readouterr().err
        assert (
            line.startswith(f"skipped {tmp_path / name}: ") and message in line and line.count("\n") == 1
        ), line
    assert names(tmp_path) == ["cut.mp4", "good.mp4", "only.mp4", "sound.mp4"]
    assert run(tmp_path / "cut.mp4", tmp_path / "good.mp4", "-o", f"{tmp_path}/out/") == 1
    assert names(tmp_path / "out") == ["good.mp4"]


@pytest.mark.parametrize("failure", (RuntimeError("out of memory"), KeyboardInterrupt()))
def test_no_half_written_video(tmp_path, capsys, failure):
    class Failing(Halving):
        def __call__(self, image, *, lut_weights=None):
            if len(self.used) == 3:
                assert len(names(tmp_path / "out")) == 2, "a file is being written"
                raise failure
            return super().__call__(image, lut_weights=lut_weights)

    film(tmp_path / "a.mp4", scene(6), sound=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.mp4").write_text("something of value")
    status = run(tmp_path / "a.mp4", "-o", tmp_path / "out", "--force", model=Failing())
    assert (
        names(tmp_path / "out") == ["a.mp4"] and (tmp_path / "out/a.mp4").read_text() == "something of value"
    )
    interrupted = isinstance(failure, KeyboardInterrupt)
    assert status == (130 if interrupted else 1)
    expected = (
        "Interrupted; the file in work is left out." if interrupted else "a.mp4: RuntimeError: out of memory"
    )
    assert capsys.readouterr().err.strip().endswith(expected)


SLOW = """
import sys, time
from pyops import cli, models
print(*{"PIL", "av", "rich", "pyops.io.images", "pyops.io.video"} & set(sys.modules))

class Slow:
    count = 0

    def to(self, device):
        return self

    def __call__(self, image, *, lut_weights=None):
        Slow.count += 1
        if Slow.count > 100:
            print("frame", flush=True)
            time.sleep(0.1)
        return image

models.CoTF.pretrained = Slow
raise SystemExit(cli.main(["correct", *sys.argv[1:]]))
"""


def test_start_and_ctrl_c(tmp_path):
    """The command line loads nothing of the extra before it must; an interrupted video leaves nothing behind."""
    film(tmp_path / "a.mp4", scene(5) * 60)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", SLOW, str(tmp_path / "a.mp4"), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "\n", "nothing loaded"
        assert process.stdout.readline() == "frame\n"
        (temporary,) = os.listdir(tmp_path / "out")
        assert temporary.endswith(".tmp")
        process.send_signal(signal.SIGINT)
        printed, message = process.communicate()
    assert process.returncode == 130 and message == "Interrupted; the file in work is left out.\n"
    assert printed.count("frame") < 150 and not os.listdir(tmp_path / "out")
