"""The report as one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from . import plots
from .environment import plain_name
from .run import verdict

Case = Mapping[str, Any]
Result = Mapping[str, Any]
TEMPLATE = Path(__file__).with_name("page.html")
HEADS = ("Contestant", "Ratio", "Median", "p20 to p80", "Min", "GB/s", "Of copy", "Peak memory", "Match")
STAMP = "date git pyops torch python threads isa load cuda kernels driver sm_clock memory_clock".split()
KINDS = {"cpu": "CPU", "cuda": "GPU"}
METHODS = {"graph": "CUDA graph", "events": "call by call"}  # how the GPU was given its work


def render(ops: Mapping[str, Sequence[Result]]) -> str:
    return Template(TEMPLATE.read_text()).substitute(body="\n".join(section(op, r) for op, r in ops.items()))


def section(op: str, measured: Sequence[Result]) -> str:
    parts = [f'<section id="{escape(op)}"><h2><code>{escape(op)}</code></h2>', overview(measured)]
    for result in measured:
        parts.append(f"<h3>{escape(device(result))}</h3>{environment(result)}")
        parts.append('<div class="plots">')
        parts.append(figure("Against peers: right of 1x, pyops is faster", plots.ratios(result)))
        parts.append(figure("Against a plain copy", plots.bandwidth(result)) + "</div>")
        parts += [details(case) for case in result["cases"].values()]
    return "\n".join([*parts, "</section>"])


def figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def overview(measured: Sequence[Result]) -> str:
    """A row per workload, a column per device."""
    columns: list[tuple[str, Result | None]] = [(device(r), r) for r in measured]
    present = {r["device"] for r in measured}
    columns += [(name, None) for kind, name in KINDS.items() if kind not in present]
    titles = {name: case["title"] for r in measured for name, case in r["cases"].items()}
    head = "".join(f'<th scope="col" role="columnheader">{escape(name)}</th>' for name, _ in columns)
    rows = []
    for name, title in titles.items():
        cells = "".join(
            f'<td role="cell" data-label="{escape(label)}">{cell((r or {}).get("cases", {}).get(name))}</td>'
            for label, r in columns
        )
        rows.append(f'<tr role="row"><th scope="row" role="rowheader">{escape(title)}</th>{cells}</tr>')
    return (
        '<table class="overview" role="table"><caption>Median time of pyops, and how many times as long the '
        "fastest peer with the same result, and plain PyTorch, take</caption>"
        '<thead role="rowgroup"><tr role="row">'
        f'<th scope="col" role="columnheader">Workload</th>{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def cell(case: Case | None) -> str:
    ours = case["contestants"].get("pyops", {}) if case else {}
    if case is None:
        return '<span class="none">not measured</span>'
    if "median_ms" not in ours:
        return f'<span class="bad">failed: {escape(ours.get("error", "no numbers"))}</span>'
    text = f"<b>{milliseconds(ours['median_ms'])}</b>"
    if not ours["match"]:
        text += ' <span class="bad">wrong result</span>'
    for name, speedup in shown_peers(case):
        text += f' <span class="peer">{pill(speedup)} {escape(name)}</span>'
    return text


def details(case: Case) -> str:
    rows = "".join(contestant(name, c) for name, c in case["contestants"].items())
    if case["copy_ms"]:
        speed = f"{case['bytes'] / case['copy_ms'] * 1e-6:.1f}"
        rows += (
            '<tr class="copy"><th scope="row">plain copy of the same bytes</th>'
            f"<td></td><td>{milliseconds(case['copy_ms'])}</td><td></td><td></td>"
            f"<td>{speed}</td><td>100 %</td><td></td><td></td></tr>"
        )
    rows += limit(case)
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    work = f"{case['bytes'] * 1e-6:.0f} MB, {case['flops'] * 1e-9:.2g} GFLOP"
    note = "" if case["overhead"] else f" <small>{work}</small>"
    return (
        f"<details><summary>{escape(case['title'])}{note}</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(case["title"])}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def limit(case: Case) -> str:
    """What the GPU allows, what was expected and wanted, and which share of the floor was reached."""
    known = case.get("limits")
    if not known:
        return ""
    ours = case["contestants"].get("pyops", {}).get("median_ms")
    share = f"{known['floor_ms'] / ours:.0%}".replace("%", " %") if ours else "not measured"
    expected = f"predicted {milliseconds(known['predicted_ms'])}, held up by {known['binds']}"
    if known["goal"]:
        expected += f"; goal: {known['goal']}"
    return (
        f'<tr class="copy"><th scope="row">floor of bytes and arithmetic <small>{escape(expected)}</small></th>'
        f"<td></td><td>{milliseconds(known['floor_ms'])}</td>"
        f'<td colspan="6">pyops reaches {share} of it</td></tr>'
    )


def contestant(name: str, c: Mapping[str, Any]) -> str:
    method = f" <small>{METHODS[c['method']]}</small>" if c.get("method") in METHODS else ""
    head = f'<tr class="{"ours" if c["ours"] else "rival"}"><th scope="row">{escape(name)}{method}</th>'
    if "median_ms" not in c:
        why = f"failed: {c['error']}" if "error" in c else f"not measured: {c['skipped']}"
        return f'{head}<td colspan="8" class="none">{escape(why)}</td></tr>'
    cells = (
        pill(c["speedup"]) if c["speedup"] else "" if c["ours"] else "excluded",
        milliseconds(c["median_ms"]),
        f"{milliseconds(c['p20_ms'])} to {milliseconds(c['p80_ms'])}",
        milliseconds(c["min_ms"]),
        f"{c['gb_s']:.1f}" if c["gb_s"] else "",
        f"{c['of_copy']:.0%}".replace("%", " %") if c["of_copy"] else "",
        f"{c['peak_bytes'] * 1e-6:.0f} MB" if c.get("peak_bytes") is not None else "not measured",
        escape(verdict(c)) if c["match"] else f'<span class="bad">{escape(verdict(c))}</span>',
    )
    return head + "".join(f"<td>{text}</td>" for text in cells) + "</tr>"


def environment(result: Result) -> str:
    facts = {k.replace("_", " "): result[k] for k in STAMP if result.get(k) is not None}
    if result["quick"]:
        facts["note"] = "a quick run: a look, not a result"
    pairs = "".join(f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="environment">{pairs}</dl>'


def device(result: Result) -> str:
    name = plain_name(result["name"])
    return name if result["device"] == "cuda" else f"{name}, {result['threads']} threads"


def shown_peers(case: Case) -> list[tuple[str, float]]:
    """Names and ratios of the fastest peer whose result matched, and of plain PyTorch."""
    ratios = {
        n: c["speedup"] for n, c in case["contestants"].items() if c.get("speedup") and not c.get("part")
    }
    fastest = min(ratios, key=lambda name: ratios[name], default=None)
    return [(n, r) for n, r in ratios.items() if n == fastest or case["contestants"][n]["stock"]]


def milliseconds(value: float) -> str:
    if value < 0.1:
        return f"{value * 1e3:.3g} us"
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def ratio(value: float) -> str:
    digits = 2 if value < 0.995 else 1 if value < 9.95 else 0
    return f"{value:.{digits}f}x"


def pill(value: float) -> str:
    return f'<span class="{"good" if value >= 1 else "slow"}">{ratio(value)}</span>'
