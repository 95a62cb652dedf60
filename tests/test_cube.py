"""The .cube reader and writer: round trip, agreement with OpenColorIO, every malformed file with its line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyops
from pyops.io import read_cube, write_cube

ROWS = ["0 0 0", "1 0 0", "0 1 0", "1 1 0", "0 0 1", "1 0 1", "0 1 1", "1 1 1"]


def cube_text(*header: str, rows: list[str] | None = None) -> str:
    return "\n".join([*header, *(ROWS if rows is None else rows)]) + "\n"


def film_table(size: int) -> torch.Tensor:
    """A LUT in which no two channels and no two axes behave alike, so that swapping any shows."""
    blue, green, red = torch.meshgrid(*[torch.linspace(0, 1, size)] * 3, indexing="ij")
    return torch.stack(
        [red**1.5 * 0.9 + 0.1 * green * blue, green**0.7 - 0.2 * red, 0.2 + 0.6 * blue**2 * (1 - red)]
    )


# ---- reading -------------------------------------------------------------------------------------------


def test_red_is_fastest_in_the_file_and_last_in_the_table(tmp_path):
    path = tmp_path / "order.cube"
    path.write_text(
        cube_text("LUT_3D_SIZE 2", rows=[f"{r} {g + 10} {b + 20}" for b, g, r in np.ndindex(2, 2, 2)])
    )
    table = read_cube(path).table
    assert table.shape == (3, 2, 2, 2) and table.dtype == torch.float32 and table.is_contiguous()
    for blue, green, red in np.ndindex(2, 2, 2):
        assert table[:, blue, green, red].tolist() == [red, green + 10, blue + 20]


def test_the_whole_grammar(tmp_path):
    path = tmp_path / "grammar.cube"
    lines = [
        "# made by hand",
        "",
        'TITLE  "Été: a # b"',
        "\tDOMAIN_MIN -1 -0.5 0",
        "DOMAIN_MAX 2 1e0 +.5",
        "LUT_3D_SIZE\t2",
    ]
    lines += [
        "  # data",
        *ROWS[:4],
        "",
        "# between",
        *[f"  {row.replace(' ', chr(9))}  " for row in ROWS[4:]],
        "",
    ]
    rows = torch.tensor([[float(x) for x in row.split()] for row in ROWS])
    expected = rows.reshape(2, 2, 2, 3).permute(3, 0, 1, 2)
    for line_end, mark in (("\n", b""), ("\r\n", b"\xef\xbb\xbf"), ("\r", b"")):
        path.write_bytes(mark + line_end.join(lines).encode())
        lut = read_cube(path)
        assert lut.title == "Été: a # b"
        assert lut.domain_min.tolist() == [-1, -0.5, 0] and lut.domain_max.tolist() == [2, 1, 0.5]
        assert torch.equal(lut.table, expected)


def test_defaults_and_resolve_input_range(tmp_path):
    path = tmp_path / "range.cube"
    path.write_text(cube_text("LUT_3D_SIZE 2"))
    lut = read_cube(str(path))
    assert lut.title is None and lut.domain_min.tolist() == [0] * 3 and lut.domain_max.tolist() == [1] * 3
    path.write_text(cube_text("LUT_3D_SIZE 2", "LUT_3D_INPUT_RANGE -0.5 2"))
    lut = read_cube(path)
    assert lut.domain_min.tolist() == [-0.5] * 3 and lut.domain_max.tolist() == [2] * 3


MALFORMED = {
    "empty file": ("", 1, "without LUT_3D_SIZE"),
    "missing size": ('TITLE "x"\n\n0 0 0\n', 3, "before LUT_3D_SIZE"),
    "size only in a comment": ("# LUT_3D_SIZE 2\n# end\n", 2, "without LUT_3D_SIZE"),
    "size 1": (cube_text("LUT_3D_SIZE 1"), 1, "from 2 to 256"),
    "size 257": (cube_text("LUT_3D_SIZE 257"), 1, "from 2 to 256"),
    "size not an integer": (cube_text("LUT_3D_SIZE 2.0"), 1, "from 2 to 256"),
    "size without a value": (cube_text("LUT_3D_SIZE"), 1, "from 2 to 256"),
    "duplicate size": (cube_text("LUT_3D_SIZE 2", "LUT_3D_SIZE 2"), 2, "repeated, first given in line 1"),
    "size after data": (cube_text("LUT_3D_SIZE 2") + "LUT_3D_SIZE 2\n", 10, "keywords come first"),
    "1D": (cube_text("LUT_1D_SIZE 8"), 1, "1D LUT"),
    "1D shaper before a 3D LUT": (cube_text("LUT_3D_SIZE 2", "LUT_1D_SIZE 8"), 2, "1D LUT"),
    "unknown keyword": (
        cube_text("LUT_3D_SIZE 2", "LUT_IN_VIDEO_RANGE"),
        2,
        "unknown keyword 'LUT_IN_VIDEO_RANGE'",
    ),
    "lower-case keyword": (cube_text("lut_3d_size 2"), 1, "unknown keyword"),
    "title without quotes": (cube_text("TITLE film", "LUT_3D_SIZE 2"), 1, "double quotes"),
    "title with one quote": (cube_text('TITLE "', "LUT_3D_SIZE 2"), 1, "double quotes"),
    "domain reversed": (
        cube_text("DOMAIN_MIN 0 1 0", "LUT_3D_SIZE 2", "DOMAIN_MAX 1 1 1"),
        3,
        "not below its maximum",
    ),
    "domain of two": (
        cube_text("DOMAIN_MIN 0 0", "LUT_3D_SIZE 2"),
        1,
        "DOMAIN_MIN: expected 3 numbers, got 2",
    ),
    "domain infinite": (cube_text("DOMAIN_MAX 1 1 inf", "LUT_3D_SIZE 2"), 1, "finite in float32"),
    "domain infinite in float32": (cube_text("LUT_3D_SIZE 2", "DOMAIN_MAX 1 1 1e39"), 2, "float32"),
    "domain twice": (
        cube_text("DOMAIN_MAX 2 2 2", "LUT_3D_INPUT_RANGE 0 1", "LUT_3D_SIZE 2"),
        2,
        "both given",
    ),
    "word in the data": (
        cube_text("LUT_3D_SIZE 2", rows=[*ROWS[:3], "0 zero 0", *ROWS[4:]]),
        5,
        "'0 zero 0'",
    ),
    "digit separator": (cube_text("LUT_3D_SIZE 2", rows=["0 0 1_0", *ROWS[1:]]), 2, "expected 3 numbers"),
    "two numbers": (cube_text("LUT_3D_SIZE 2", rows=["# a", ROWS[0], "1 0", *ROWS[2:]]), 4, "got 2"),
    "four numbers": (cube_text("LUT_3D_SIZE 2", rows=["0 0 0 0", *ROWS[1:]]), 2, "got 4"),
    "four numbers in every row": (cube_text("LUT_3D_SIZE 2", rows=["0 0 0 0"] * 8), 2, "got 4"),
    "two and four numbers": (cube_text("LUT_3D_SIZE 2", rows=["0 0", "0 1 0 0", *ROWS[2:]]), 2, "got 2"),
    "NaN": (cube_text("LUT_3D_SIZE 2", rows=["nan 0 0", *ROWS[1:]]), 2, "finite"),
    "infinity": (cube_text("LUT_3D_SIZE 2", rows=[*ROWS[:7], "1 1 -Infinity"]), 9, "finite"),
    "infinite in float32": (
        cube_text("LUT_3D_SIZE 2", rows=[*ROWS[:4], "", "0 1e39 0", *ROWS[5:]]),
        7,
        "float32",
    ),
    "too few rows": (cube_text("LUT_3D_SIZE 2", rows=ROWS[:-1]), 8, "after 7 of the 8 rows"),
    "no rows": ("LUT_3D_SIZE 2\n", 1, "after 0 of the 8 rows"),
    "too many rows": (
        cube_text("LUT_3D_SIZE 2", rows=[*ROWS, "# more", "0 0 0"]),
        11,
        "more than the 8 rows",
    ),
    "binary": ("\x00\x01\x02\n" * 3, 1, "LUT_3D_SIZE"),
}


@pytest.mark.parametrize(("text", "line", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_file_names_file_and_line(tmp_path, text, line, message):
    path = tmp_path / "broken.cube"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_cube(path)
    assert str(error.value).startswith(f"{path}, line {line}: ")
    assert message in str(error.value)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"LUT_3D_SIZE 2\n", b"LUT_3D_SIZE 2\n" + b"0 0 0\n" * 7])
)
def test_any_bytes_read_or_raise_value_error(tail, head):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any.cube")
        path.write_bytes(head + tail)
        try:
            read_cube(path)
        except ValueError as error:
            assert f"{path}, line " in str(error)


# ---- writing -------------------------------------------------------------------------------------------

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
titles = st.none() | st.text(max_size=20).filter(lambda text: text.isprintable() and '"' not in text)


tables = st.integers(2, 4).flatmap(lambda n: st.lists(float32, min_size=3 * n**3, max_size=3 * n**3))


@settings(max_examples=60, deadline=None)
@given(tables, titles, st.none() | st.tuples(float32, float32, float32))
def test_round_trip_is_exact(values, title, domain_max):
    size = round((len(values) / 3) ** (1 / 3))
    written = torch.tensor(values).reshape(3, size, size, size)
    if domain_max is not None:
        domain_max = [max(edge, 1e-30) for edge in domain_max]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "round.cube")
        write_cube(path, written, title=title, domain_max=domain_max)
        lut = read_cube(path)
    assert torch.equal(lut.table.view(torch.int32), written.view(torch.int32)), "not the same bits"
    assert lut.title == title
    assert torch.equal(lut.domain_max, torch.tensor(domain_max or [1.0] * 3))


def test_write_takes_any_layout_and_float_dtype(tmp_path):
    table = 0.0101 + 0.005 * film_table(3)  # between 0.01 and 1 / 64, float32 needs all nine digits
    for given_table in (
        table.double(),
        table.half(),
        table.clone().requires_grad_(),
        table.permute(0, 3, 2, 1),
    ):
        write_cube(tmp_path / "layout.cube", given_table)
        assert torch.equal(read_cube(tmp_path / "layout.cube").table, given_table.detach().float())


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "kept.cube"
    write_cube(path, film_table(2))
    before = path.read_bytes()

    def broken_rename(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken_rename)
    with pytest.raises(OSError, match="disk full"):
        write_cube(path, film_table(3))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "the temporary file was left behind"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table": [[0.0]]}, TypeError, "table: expected a floating-point tensor, got list"),
        ({"table": torch.zeros(3, 2, 2, 2, dtype=torch.uint8)}, TypeError, "got torch.uint8"),
        ({"table": torch.zeros(())}, ValueError, "table: expected shape"),
        ({"table": torch.zeros(1, 3, 2, 2, 2)}, ValueError, r"got \[1, 3, 2, 2, 2\]"),
        ({"table": torch.zeros(3, 2, 3, 2)}, ValueError, r"got \[3, 2, 3, 2\]"),
        ({"table": torch.zeros(3, 1, 1, 1)}, ValueError, "N 2..256"),
        ({"table": torch.full((3, 2, 2, 2), float("nan"))}, ValueError, "NaN or infinity"),
        ({"table": torch.full((3, 2, 2, 2), 1e39, dtype=torch.float64)}, ValueError, "NaN or infinity"),
        ({"title": 'a "b"'}, ValueError, "title: "),
        ({"title": "two\nlines"}, ValueError, "title: "),
        ({"domain_min": [0, 0]}, ValueError, "domain_min: expected three finite numbers"),
        ({"domain_max": [1, 1, float("inf")]}, ValueError, "domain_max: expected three finite numbers"),
        ({"domain_min": [0, 1, 0]}, ValueError, "domain_min: expected less than domain_max"),
    ],
)
def test_write_refuses_what_the_format_cannot_hold(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        write_cube(tmp_path / "refused.cube", **{"table": film_table(2), **arguments})
    assert not list(tmp_path.iterdir())


# ---- meaning -------------------------------------------------------------------------------------------


def test_apply_without_domain_is_lut3d(tmp_path):
    write_cube(tmp_path / "film.cube", film_table(9))
    lut = read_cube(tmp_path / "film.cube")
    image = torch.rand(2, 3, 5, 7) * 1.2 - 0.1
    assert torch.equal(lut.apply(image), pyops.lut3d(image, lut.table))
    pixels = (image.clamp(0, 1) * 255).to(torch.uint8)
    assert torch.equal(lut.apply(pixels, interpolation="tetrahedral"),
                       pyops.lut3d(pixels, lut.table, interpolation="tetrahedral"))  # fmt: skip


def test_apply_rescales_the_domain(tmp_path):
    low, high = [-1.0, 0.0, 0.5], [3.0, 2.0, 4.5]
    write_cube(tmp_path / "hdr.cube", pyops.identity_lut(5), domain_min=low, domain_max=high)
    lut = read_cube(tmp_path / "hdr.cube")
    image = torch.rand(3, 6, 4) * 6 - 1.5
    span = [(image[c] - low[c]) / (high[c] - low[c]) for c in range(3)]
    torch.testing.assert_close(lut.apply(image), torch.stack(span).clamp(0, 1), atol=1e-6, rtol=0)
    half = lut.apply(image.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), lut.apply(image.half().float()), atol=5e-4, rtol=0)
    with pytest.raises(TypeError, match="image: expected a floating-point dtype"):
        lut.apply(torch.zeros(3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("interpolation", ["trilinear", "tetrahedral"])
@pytest.mark.parametrize(
    "domain", [None, ([-0.25, 0.0, 0.1], [1.5, 2.0, 1.0])], ids=["unit domain", "own domain"]
)
def test_opencolorio_agrees(tmp_path, interpolation, domain):
    ocio = pytest.importorskip("PyOpenColorIO")
    path = tmp_path / "film.cube"
    low, high = domain or (None, None)
    write_cube(path, film_table(17), title="film", domain_min=low, domain_max=high)
    image = torch.rand(3, 40, 50) * 2.4 - 0.7

    kind = ocio.INTERP_LINEAR if interpolation == "trilinear" else ocio.INTERP_TETRAHEDRAL
    transform = ocio.FileTransform(str(path), interpolation=kind)
    processor = ocio.Config.CreateRaw().getProcessor(transform)
    cpu = processor.getDefaultCPUProcessor()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    cpu.applyRGB(pixels)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)

    torch.testing.assert_close(
        read_cube(path).apply(image, interpolation=interpolation), expected, atol=1e-5, rtol=0
    )
