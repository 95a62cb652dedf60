"""`python -m bench run | report | compare | limits | gpu`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .environment import ROOT

RESULTS = ROOT / "bench" / "results"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description="Speed of pyops beside its peers.")
    commands = top.add_subparsers(dest="command", required=True)

    p = commands.add_parser("run", help="measure, and write one JSON per device and operator")
    p.add_argument("--op", nargs="+", metavar="OP", help="operators and models to run; all by default")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--quick", action="store_true", help="a few small cases; written only where --out says")
    p.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="time for each case (default: its own, at most 12; quick: 1)",
    )
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own choice)")
    p.add_argument("--goals", action="store_true", help="only cases for which there is a goal on a GPU")
    p.add_argument("--minutes", type=float, metavar="M", help="time for all, shared out among operators")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of results (default: bench/results)")

    p = commands.add_parser("report", help="write report.html and plots, update the table in README.md")
    p.add_argument("--out", type=Path, metavar="DIR", default=RESULTS, help="folder of results")
    p.add_argument("--readme", type=Path, metavar="FILE", default=ROOT / "README.md")

    p = commands.add_parser("compare", help="exit status 1 when a time or a ratio got worse")
    p.add_argument("base", type=Path)
    p.add_argument("new", type=Path)
    p.add_argument("--fail-above", type=float, metavar="PERCENT", default=5.0)

    p = commands.add_parser("limits", help="bytes, FLOPs, floors and predictions of every case on a GPU")
    p.add_argument("--op", nargs="+", metavar="OP", help="operators and models; all by default")
    p.add_argument("--device", default="nvidia-h200", metavar="NAME", help="default: nvidia-h200")
    p.add_argument("--goals", action="store_true", help="only cases with a goal")

    p = commands.add_parser("gpu", help="on a GPU machine: build, test, sanitize and bench, into one folder")
    p.add_argument("--out", type=Path, metavar="DIR", required=True)
    p.add_argument("--stage", type=_comma, metavar="A,B", help="some of build,test,sanitize,bench")
    p.add_argument("--only", type=_comma, metavar="OP,OP", help="some operators and models")
    p.add_argument("--minutes", type=float, metavar="M", default=9.0, help="time for all stages together")
    p.add_argument("--goals", action="store_true", help="bench: only cases for which there is a goal")
    p.add_argument("--wheels", type=Path, metavar="DIR", help="peers' wheels to install without a network")
    return top


def _comma(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    # Imported late: `compare` needs no torch, and `gpu` runs before pyops is built.
    try:
        if args.command == "compare":
            from .compare import compare

            return compare(args.base, args.new, args.fail_above)
        if args.command == "gpu":
            from .gpu import gpu

            return gpu(args.out, args.stage, args.only, args.minutes, args.wheels, args.goals)
        if args.command == "report":
            from .report import report

            return report(args.out, args.readme)
        if args.command == "limits":
            from .limits import show

            return show(args.op, args.device, args.goals)
        import torch

        from .run import run, run_apart

        if args.threads:
            torch.set_num_threads(args.threads)
        out = args.out or (None if args.quick else RESULTS)
        seconds = args.seconds or (1.0 if args.quick else None)
        options = dict(quick=args.quick, goals=args.goals, out=out, seconds=seconds)
        if args.minutes:
            return run_apart(args.op, args.device, minutes=args.minutes, **options)
        return run(args.op, args.device, **options)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
