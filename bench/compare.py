"""The regression gate: two result files of the same operator on the same device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Change(NamedTuple):
    case: str
    what: str
    base: float
    new: float
    percent: float  # how much worse; negative is better


def compare(base_path: Path, new_path: Path, fail_above: float) -> int:
    """Print what changed; 1 when one of our times or ratios is more than `fail_above` percent worse."""
    base, new = (json.loads(path.read_text()) for path in (base_path, new_path))
    for key in ("op", "slug"):
        if base[key] != new[key]:
            raise ValueError(f"compare: expected two files of one {key}, got {base[key]} and {new[key]}")
    shared = [name for name in base["cases"] if name in new["cases"]]
    if not shared:
        raise ValueError(f"compare: {base_path} and {new_path} share no case")

    failures = 0
    for name in shared:
        for change in changes(name, base["cases"][name], new["cases"][name]):
            failed = change.percent > fail_above
            failures += failed
            if failed or change.what == "pyops":
                print(
                    f"{'WORSE' if failed else 'ok':6}{change.case}: {change.what} "
                    f"{change.base:.4g} -> {change.new:.4g} ({change.percent:+.1f} % worse)"
                )
    for name in sorted(base["cases"].keys() ^ new["cases"].keys()):
        print(f"only in {'base' if name in base['cases'] else 'new'}: {name}")
    print(f"{failures} worse by more than {fail_above:g} % in {len(shared)} cases")
    return int(failures > 0)


def changes(name: str, base: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Of our contestants the time in ms, of the peers the ratio; a lost match is infinitely worse."""
    for who, old in base["contestants"].items():
        now = new["contestants"].get(who, {})
        if old["ours"] and old.get("match"):
            time = now["median_ms"] if now.get("match") else float("inf")
            yield Change(name, who, old["median_ms"], time, 100 * (time / old["median_ms"] - 1))
        elif old.get("speedup") and now.get("speedup"):
            percent = 100 * (old["speedup"] / now["speedup"] - 1)
            yield Change(name, f"ratio to {who}", old["speedup"], now["speedup"], percent)
