"""Side-by-side measurements against the peers.

    python -m benchmarks run [CASE ...] --checkpoint DIR --data DIR
    python -m benchmarks table
    python -m benchmarks list

`run` measures cases (when none is named, all for this machine: with a GPU or without) and keeps the results; a case
that is run again replaces its result.
`table` writes docs/benchmarks.md from what is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.harness import Harness, command_line
from benchmarks.machine import describe

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results"
# Paths that mean nothing on another machine.
HIDDEN = {"--checkpoint": "CHECKPOINT", "--data": "DATA", "--out": "OUT", "--peer-python": "PYTHON"}


def run(arguments: argparse.Namespace) -> None:
    """Measure."""
    data = arguments.data / arguments.data_set
    for path in (arguments.checkpoint / "config.json", data / "train.parquet", data / "test.parquet"):
        if not path.exists():
            sys.exit(f"error: there is no {path}")
    harness = Harness(
        arguments.checkpoint.resolve(),
        data.resolve(),
        arguments.out.resolve(),
        arguments.repeats,
        arguments.examples,
        arguments.test_examples,
        arguments.peer_python,
        command_line(sys.argv[1:], HIDDEN),
    )
    has_gpu = describe()["gpu"] is not None
    for name in arguments.cases or [case.name for case in CASES.values() if case.gpu is has_gpu]:
        print(f"wrote {harness.run(CASES[name])}", flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Write the document."""
    from benchmarks.report import document, read_results

    results = read_results(arguments.out)
    if not results:
        sys.exit(f"error: there are no results in {arguments.out}")
    arguments.to.write_text(document(results), encoding="utf-8")
    print(f"wrote {arguments.to}")


def show(arguments: argparse.Namespace) -> None:
    """List the cases."""
    for case in CASES.values():
        print(f"{case.name:12}{case.title}: {'; '.join(one.name for one in case.contestants)}")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run", help="measure cases")
    runner.add_argument("cases", nargs="*", metavar="CASE", help="see `list`")
    runner.add_argument("--checkpoint", type=Path, required=True, help="folder of a BERT-like model")
    runner.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    runner.add_argument("--data-set", default="sst2", help="its parquet files have columns text and label")
    runner.add_argument("--repeats", type=int, default=3, help="rounds")
    runner.add_argument("--examples", type=int, default=2000, help="training examples")
    runner.add_argument("--test-examples", type=int, help="at most so many are scored; all when absent")
    runner.add_argument("--peer-python", help="interpreter for peers that are not installed in this one")
    runner.set_defaults(action=run)
    printer = verbs.add_parser("table", help="write docs/benchmarks.md")
    printer.add_argument("--to", type=Path, default=DOCUMENT)
    printer.set_defaults(action=table)
    for verb in (runner, printer):
        verb.add_argument("--out", type=Path, default=RESULTS, help="folder of results, one file per case")
    verbs.add_parser("list", help="say what there is").set_defaults(action=show)
    arguments = parser.parse_args()
    for name in getattr(arguments, "cases", []):
        if name not in CASES:
            parser.error(f"no case is called {name!r}; there are {', '.join(CASES)}")
    arguments.action(arguments)


if __name__ == "__main__":
    main()
