"""Plots as SVG text that takes the page's text colour, so that one drawing serves light and dark."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from .environment import plain_name

FONT = "system-ui, sans-serif"
INK = "#010203"  # replaced by currentColor
PALETTE = ("#3b82f6", "#d97706", "#10b981", "#e11d48", "#8b5cf6", "#64748b")
MARKERS = "osD^vP"
WIDTH_IN = 4.6  # a phone's width: text keeps its size there, and grows on a desktop
ROW_IN, LINE_IN = 0.4, 0.14  # with a title of one line, and for each more
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyops",
    "font.family": "DejaVu Sans",  # for measuring; the page's own font is put in its place
    "font.size": 8.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
}


def ratios(result: Mapping[str, Any], headline: bool = False) -> str:
    """How many times as long each peer takes, a row for each case, on a logarithmic axis."""
    cases = [
        case
        for case in result["cases"].values()
        if not case["overhead"] and any(c.get("speedup") for c in case["contestants"].values())
    ]
    cases = [c for c in cases if c["headline"] or not headline] or cases
    peers = list(dict.fromkeys(n for c in cases for n, p in c["contestants"].items() if p.get("speedup")))
    with plt.rc_context(STYLE):
        figure, axes = _rows([c["title"] for c in cases], legend_rows=(len(peers) + 1) // 2)
        for i, peer in enumerate(peers):
            found = [(c["contestants"].get(peer, {}).get("speedup"), row) for row, c in enumerate(cases)]
            points = [(x, row) for x, row in found if x]
            look: Any = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
            axes.scatter([x for x, _ in points], [row for _, row in points], 34, label=peer, zorder=3, **look)
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.5), max(high, 2))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x" if x >= 1 else f"1/{1 / x:g}x")
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_xlabel(f"time of the peer / time of pyops on {plain_name(result['name'])}")
        if peers:
            figure.legend(loc="lower left", ncols=2, frameon=False, handletextpad=0.2, columnspacing=1)
        return _svg(figure, f"Ratios to peers on {plain_name(result['name'])}")


def bandwidth(result: Mapping[str, Any]) -> str:
    """Share of the speed of a plain copy of the same bytes."""
    ours = {c["title"]: c["contestants"]["pyops"].get("of_copy") for c in result["cases"].values()}
    shares = {title: 100 * share for title, share in ours.items() if share}
    with plt.rc_context(STYLE):
        figure, axes = _rows(list(shares))
        axes.barh(range(len(shares)), list(shares.values()), height=0.22, color=PALETTE[0], zorder=3)
        for row, share in enumerate(shares.values()):
            axes.annotate(
                f"{share:.0f} %", (share, row), (3, 0), textcoords="offset points", va="center", size=8
            )
        axes.set_xlim(0, max([100.0, *shares.values()]) * 1.1)
        axes.set_xlabel("percent of a copy of the same bytes")
        return _svg(figure, f"Share of copy bandwidth on {plain_name(result['name'])}")


def standalone(svg: str) -> str:
    """For an <img>: there the page's colour does not reach, the reader's preference does."""
    style = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", svg, count=1)


def _rows(titles: list[str], legend_rows: int = 0) -> tuple[plt.Figure, plt.Axes]:
    """Horizontal rows with the title above each: no wide margin is spent on labels."""
    bottom = 0.5 + 0.2 * legend_rows
    wrapped = [textwrap.fill(title, 60) for title in titles]
    row_in = ROW_IN + LINE_IN * max((text.count("\n") for text in wrapped), default=0)
    top = 1 - 0.4 * ROW_IN / row_in  # as far above a row as its title reaches
    height = row_in * (max(1, len(titles)) - 1 + top + 0.6) + bottom + 0.1
    figure, axes = plt.subplots(figsize=(WIDTH_IN, height))
    figure.subplots_adjust(left=0.04, right=0.96, bottom=bottom / height, top=1 - 0.1 / height)
    for row, text in enumerate(wrapped):
        to = row - 0.18 * ROW_IN / row_in
        axes.text(0.0, to, text, transform=axes.get_yaxis_transform(), va="bottom", size=8)
    axes.set_ylim(max(1, len(titles)) - 0.4, -top)
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="x", color=INK, alpha=0.12)
    return figure, axes


def _svg(figure: plt.Figure, title: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans'", FONT)
    # Ids are unique within one drawing only; the page holds several.
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower())
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
