"""The measured numbers as a page, plots and the table of README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import page, plots

Result = dict[str, Any]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOTE = (
    "Median time, and how many times as long the fastest peer with the same result, and plain PyTorch, take."
)
NOT_MEASURED = "not measured"


def report(results: Path, readme: Path) -> int:
    ops = load(results)
    for op, measured in ops.items():
        (results / f"{op}.svg").write_text(plots.standalone(plots.ratios(measured[0], headline=True)))
    (results / "report.html").write_text(page.render(ops))
    print(f"wrote {results / 'report.html'} and {', '.join(f'{op}.svg' for op in ops)}")
    update_readme(readme, markdown(ops))
    print(f"updated the table of {readme}")
    return 0


def load(results: Path) -> dict[str, list[Result]]:
    """Results by operator, then by model; GPUs first."""
    ops: dict[str, list[Result]] = {}
    for path in sorted(results.glob("*/*.json")):
        result = json.loads(path.read_text())
        if "cases" in result:
            ops.setdefault(result["op"], []).append(result)
    if not ops:
        raise ValueError(f"no results in {results}: run `python -m bench run` first")
    for measured in ops.values():
        measured.sort(key=lambda r: (r["device"] != "cuda", r["slug"]))
    return dict(sorted(ops.items(), key=lambda item: (item[1][0].get("kind") == "model", item[0])))


def markdown(ops: Mapping[str, Sequence[Result]]) -> str:
    """One row per headline workload, one column per device; a kind of device without results says so."""
    devices = {r["slug"]: page.device(r) for measured in ops.values() for r in measured}
    kinds = {r["device"] for measured in ops.values() for r in measured}
    missing = [name for kind, name in (("cpu", "CPU"), ("cuda", "GPU")) if kind not in kinds]
    rows = []
    for op, measured in ops.items():
        by_slug = {r["slug"]: r for r in measured}
        for name, title in headlines(measured):
            cells = [
                summary(by_slug[s]["cases"].get(name)) if s in by_slug else NOT_MEASURED for s in devices
            ]
            rows.append([f"`{op}`", title, *cells, *[NOT_MEASURED] * len(missing)])
    header = ["op", "workload", *devices.values(), *missing]
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{NOTE}"


def headlines(measured: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """Names and titles of the headline cases; every case where none is marked (a quick run)."""
    cases = {name: case for r in measured for name, case in r["cases"].items()}
    chosen = {name: case for name, case in cases.items() if case["headline"]} or cases
    return ((name, case["title"]) for name, case in chosen.items())


def summary(case: Mapping[str, Any] | None) -> str:
    ours = case["contestants"]["pyops"] if case else {}
    if case is None or "median_ms" not in ours:
        return NOT_MEASURED
    ratios = [f"; {page.ratio(speedup)} {name}" for name, speedup in page.shown_peers(case)]
    return (
        page.milliseconds(ours["median_ms"]) + "".join(ratios) + ("" if ours["match"] else " (wrong result)")
    )


def update_readme(readme: Path, block: str) -> None:
    text = readme.read_text() if readme.is_file() else ""
    if not re.search(f"{BEGIN}.*?{END}", text, re.DOTALL):
        raise ValueError(f"{readme} has no block {BEGIN} ... {END} to hold the table")
    # A function, since the block is no replacement pattern.
    new = re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{block}\n{END}", text, count=1, flags=re.DOTALL)
    readme.write_text(new)
