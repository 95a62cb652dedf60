"""The .cube file of 3D colour look-up tables: read, write, apply.

Follows the Adobe "Cube LUT Specification 1.0" and the dialect of DaVinci Resolve (`LUT_3D_INPUT_RANGE`).
As in Adobe's specification, an unknown or repeated keyword is an error: a keyword that the reader does not
know may change what the numbers mean.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import pyops

SIZES = range(2, 257)
FLOAT32_MAX = float(np.finfo(np.float32).max)
NOT_FINITE = re.compile("inf|infinity|nan", re.IGNORECASE)
DOMAIN_KEYWORDS = ("DOMAIN_MIN", "DOMAIN_MAX", "LUT_3D_INPUT_RANGE")
Header = dict[str, tuple[Any, int]]


class CubeLUT(NamedTuple):
    """A 3D LUT as a .cube file holds it."""

    table: Tensor
    """`[3, N, N, N]` float32, index order `table[c, blue, green, red]`, ready for `pyops.lut3d`."""
    domain_min: Tensor
    """`[3]` float32: the red, green and blue input value of the first lattice point; usually 0."""
    domain_max: Tensor
    """`[3]` float32: the red, green and blue input value of the last lattice point; usually 1."""
    title: str | None = None

    def apply(self, image: Tensor, *, interpolation: str = "trilinear") -> Tensor:
        """Grade an image: `pyops.lut3d` with the file's domain taken into account.

        `lut3d` expects the domain at 0..1. For any other domain the image is first brought there with
        `(x - domain_min) / (domain_max - domain_min)`; input outside the domain takes the value at its edge.

        Args:
            image: `[B, 3, H, W]` or `[3, H, W]`. Integer images are allowed when the domain is 0..1.
            interpolation: "trilinear" or "tetrahedral".

        Returns:
            The graded image, of the shape, dtype and device of `image`.

        Raises:
            TypeError: an integer image with a domain other than 0..1.
        """
        table = self.table.to(image.device)
        if bool((self.domain_min == 0).all() and (self.domain_max == 1).all()):
            return pyops.lut3d(image, table, interpolation=interpolation)
        if not image.is_floating_point():
            raise TypeError(
                "image: expected a floating-point dtype, already in the scale of the LUT's domain "
                f"{self.domain_min.tolist()} to {self.domain_max.tolist()}, got {image.dtype}"
            )
        # Half types are too coarse for the rescaling: 1e4 + 1 is 1e4 in float16.
        wide = image.to(torch.promote_types(image.dtype, torch.float32))
        low, high = (edge.to(wide).view(3, 1, 1) for edge in (self.domain_min, self.domain_max))
        return pyops.lut3d((wide - low) / (high - low), table, interpolation=interpolation).to(image.dtype)


def read_cube(path: str | os.PathLike[str]) -> CubeLUT:
    """Read a 3D LUT from a .cube file (Adobe, Resolve).

    Convention: the file lists red fastest, then green, then blue, and so does the table:
    `table[c, blue, green, red]`. Comments and blank lines may stand anywhere, keywords only before the data.

    Args:
        path: the file; UTF-8 or ASCII, any line ending, with or without a byte-order mark.

    Returns:
        `CubeLUT(table [3, N, N, N], domain_min [3], domain_max [3], title)`, float32 on the CPU;
        `title` is None when the file has none.

    Raises:
        ValueError: the file is malformed or holds a 1D LUT; the message names the file and the line.
        OSError: the file cannot be read.

    Example:
        >>> lut = read_cube("film.cube")  # doctest: +SKIP
        >>> graded = lut.apply(image, interpolation="tetrahedral")  # doctest: +SKIP
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = file.read().split("\n")
    if not lines[-1]:
        lines.pop()
    try:
        header, begin = _read_header(lines)
        domain_min, domain_max = _read_domain(header)
        table = _read_table(lines, begin, header["LUT_3D_SIZE"][0])
    except _LineError as error:
        raise ValueError(f"{os.fspath(path)}, line {error.line}: {error.message}") from None
    return CubeLUT(table, domain_min, domain_max, header.get("TITLE", (None, 0))[0])


class _LineError(Exception):
    def __init__(self, line: int, message: str) -> None:
        self.line, self.message = line, message


def _read_header(lines: list[str]) -> tuple[Header, int]:
    """The keywords, each with its value and its line, and the index of the first line of the table."""
    header: Header = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        keyword = words[0]
        if keyword in header:
            raise _LineError(number, f"{keyword} repeated, first given in line {header[keyword][1]}")
        if keyword in KEYWORDS:
            try:
                header[keyword] = KEYWORDS[keyword](line.strip()[len(keyword) :].strip()), number
            except ValueError as error:
                raise _LineError(number, f"{keyword}: {error}") from None
        elif keyword[0].isalpha() and not NOT_FINITE.fullmatch(keyword):
            raise _LineError(number, f"unknown keyword {keyword[:40]!r}; known are {', '.join(KEYWORDS)}")
        elif "LUT_3D_SIZE" not in header:
            raise _LineError(number, "the table begins before LUT_3D_SIZE is given")
        else:
            return header, number - 1
    if "LUT_3D_SIZE" not in header:
        raise _LineError(max(len(lines), 1), "the file ends without LUT_3D_SIZE")
    return header, len(lines)


def _read_domain(header: Header) -> tuple[Tensor, Tensor]:
    """The smallest and the largest input value, each `[3]`."""
    last = max((header[key][1] for key in DOMAIN_KEYWORDS if key in header), default=0)
    low = header.get("DOMAIN_MIN", ([0.0] * 3, 0))[0]
    high = header.get("DOMAIN_MAX", ([1.0] * 3, 0))[0]
    if "LUT_3D_INPUT_RANGE" in header:
        if "DOMAIN_MIN" in header or "DOMAIN_MAX" in header:
            raise _LineError(last, "LUT_3D_INPUT_RANGE and DOMAIN_MIN or DOMAIN_MAX both given")
        low, high = ([edge] * 3 for edge in header["LUT_3D_INPUT_RANGE"][0])
    domain_min, domain_max = torch.tensor(low), torch.tensor(high)
    if not bool((domain_min < domain_max).all()):
        raise _LineError(last, f"the domain's minimum {low} is not below its maximum {high}")
    return domain_min, domain_max


def _read_table(lines: list[str], begin: int, size: int) -> Tensor:
    """The rows from `lines[begin]` on, as a table `[3, size, size, size]`."""
    rows = [line for line in lines[begin:] if (text := line.strip()) and text[0] != "#"]
    values = None
    with np.errstate(over="ignore"), contextlib.suppress(ValueError):
        if len(rows) == size**3:
            values = np.loadtxt(rows, dtype=np.float32, comments=None, ndmin=2)
    if values is None or values.shape != (size**3, 3) or not np.isfinite(values).all():
        values = _read_rows(lines, begin, size)
    return torch.from_numpy(values.reshape(size, size, size, 3)).permute(3, 0, 1, 2).contiguous()


def _read_rows(lines: list[str], begin: int, size: int) -> NDArray[np.float32]:
    """Read row by row, three times slower than `np.loadtxt`, but each fault with its line."""
    rows: list[list[float]] = []
    for number, line in enumerate(lines[begin:], start=begin + 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in KEYWORDS:
            raise _LineError(number, f"{words[0]} after the first row of the table; keywords come first")
        if len(rows) == size**3:
            raise _LineError(number, f"more than the {size**3} rows that LUT_3D_SIZE {size} asks for")
        try:
            rows.append(_numbers(line, 3))
        except ValueError as error:
            raise _LineError(number, str(error)) from None
    if len(rows) < size**3:
        message = f"the file ends after {len(rows)} of the {size**3} rows that LUT_3D_SIZE {size} asks for"
        raise _LineError(len(lines), message)
    return np.asarray(rows, dtype=np.float32)


def write_cube(
    path: str | os.PathLike[str],
    table: Tensor,
    *,
    title: str | None = None,
    domain_min: Sequence[float] | Tensor | None = None,
    domain_max: Sequence[float] | Tensor | None = None,
) -> None:
    """Write a 3D LUT to a .cube file; `read_cube` returns the same float32 numbers, bit for bit.

    The file appears whole or not at all: it is written under another name in the same folder, then renamed.

    Args:
        path: the file, replaced if it exists.
        table: `[3, N, N, N]`, N 2..256, floating point, index order `table[c, blue, green, red]`; finite.
        title: one printable line without a double quote.
        domain_min, domain_max: three numbers (red, green, blue), the input values of the first and of the
            last lattice point; default 0 and 1.

    Raises:
        TypeError, ValueError: an argument that the format cannot hold; nothing is written.
    """
    path = Path(path)
    if not isinstance(table, Tensor) or not table.is_floating_point():
        kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"table: expected a floating-point tensor, got {kind}")
    size = table.shape[-1] if table.ndim else 0
    if tuple(table.shape) != (3, size, size, size) or size not in SIZES:
        raise ValueError(f"table: expected shape [3, N, N, N] with N 2..256, got {list(table.shape)}")
    table = table.detach().to("cpu", torch.float32)
    if not bool(table.isfinite().all()):
        raise ValueError("table: expected finite values in float32, got NaN or infinity")
    if title is not None and ('"' in title or not title.isprintable()):
        raise ValueError(f"title: expected one printable line without a double quote, got {title!r}")

    header = [] if title is None else [f'TITLE "{title}"']
    header.append(f"LUT_3D_SIZE {size}")
    if domain_min is not None or domain_max is not None:
        low = _domain_edge("domain_min", [0.0] * 3 if domain_min is None else domain_min)
        high = _domain_edge("domain_max", [1.0] * 3 if domain_max is None else domain_max)
        if not bool((low < high).all()):
            raise ValueError(f"domain_min: expected less than domain_max {high.tolist()}, got {low.tolist()}")
        for keyword, edge in (("DOMAIN_MIN", low), ("DOMAIN_MAX", high)):
            header.append(f"{keyword} " + " ".join(f"{value:.9g}" for value in edge.tolist()))

    # Nine significant digits tell any two float32 numbers apart.
    values = table.permute(1, 2, 3, 0).flatten().tolist()
    body = "%.9g %.9g %.9g\n" * size**3 % tuple(values)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(header) + "\n\n" + body)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _domain_edge(name: str, values: Sequence[float] | Tensor) -> Tensor:
    edge = torch.as_tensor(values).detach().to("cpu", torch.float32)
    if tuple(edge.shape) != (3,) or not bool(edge.isfinite().all()):
        raise ValueError(f"{name}: expected three finite numbers, got {values}")
    return edge


def _numbers(text: str, count: int) -> list[float]:
    # Python reads 1_000 as a number; the format does not.
    words = text.replace("_", "?").split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"expected {count} numbers, got {text.strip()[:60]!r}") from None
    if len(values) != count:
        raise ValueError(f"expected {count} numbers, got {len(values)}")
    if not all(abs(value) <= FLOAT32_MAX for value in values):
        raise ValueError(f"expected numbers that are finite in float32, got {text.strip()[:60]!r}")
    return values


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) in SIZES):
        raise ValueError(f"expected an integer from 2 to 256, got {text[:40]!r}")
    return int(text)


def _title(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError(f"expected a text in double quotes, got {text[:60]!r}")
    return text[1:-1]


def _one_dimensional(text: str) -> NoReturn:
    raise ValueError("this file holds a 1D LUT; a 3D LUT (LUT_3D_SIZE) is expected")


KEYWORDS: dict[str, Callable[[str], Any]] = {
    "TITLE": _title,
    "DOMAIN_MIN": lambda text: _numbers(text, 3),
    "DOMAIN_MAX": lambda text: _numbers(text, 3),
    "LUT_3D_SIZE": _size,
    "LUT_3D_INPUT_RANGE": lambda text: _numbers(text, 2),
    "LUT_1D_SIZE": _one_dimensional,
    "LUT_1D_INPUT_RANGE": _one_dimensional,
}
