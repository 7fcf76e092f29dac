"""Planted attacks, each against hftransfer and against an unprotected control.

python -m tests.faults.planted [--verbose]      prints one row of the table of faults
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HOME = tempfile.mkdtemp(prefix="hftransfer-planted-")
os.environ.update(HF_HOME=HOME, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HFTRANSFER_CACHE=os.path.join(HOME, "states"))

import datasets  # noqa: E402
import transformers  # noqa: E402

from tests.faults.attack import protected, unprotected  # noqa: E402
from tests.faults.attacks_code import ATTACKS as CODE  # noqa: E402
from tests.faults.attacks_path import ATTACKS as PATHS  # noqa: E402
from tests.faults.attacks_size import ATTACKS as SIZES  # noqa: E402


def main() -> int:
    """Run all attacks; the exit status says whether one worked or a control failed to."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    fired, dead, refused, slowest, total = [], [], 0, 0.0, 0
    for kind, attacks in (("code", CODE), ("size", SIZES), ("path", PATHS)):
        for number, attack in enumerate(attacks):
            outcome, control, canary = protected(attack, Path(HOME, f"{kind}-{number}"))
            works = unprotected(control, canary)
            total, refused = total + 1, refused + (outcome.verdict != "harmless")
            slowest = max(slowest, outcome.seconds)
            fired += [attack.name] if outcome.fired else []
            dead += [] if works else [attack.name]
            if "--verbose" in sys.argv:
                mark = "FIRED" if outcome.fired else "held"
                control_mark = "control fires" if works else "CONTROL DOES NOT FIRE"
                print(
                    f"{mark:5} {outcome.seconds:6.2f} s  {control_mark:22} {attack.name}: {outcome.verdict}", flush=True
                )
    row = "planted pickle, remote code, redirecting adapter, oversized config, symlink, traversal"
    how = f"{refused} refused in one line, {total - refused} without effect; the slowest took {slowest:.1f} s"
    control = f"{total - len(dead)} of {total} work unprotected"
    print(f"| {row} | {len(fired)} of {total} attacks worked ({how}); {control} |")
    for name in (*fired, *dead):
        print(f"look at: {name}", file=sys.stderr)
    return bool(fired or dead)


if __name__ == "__main__":
    sys.exit(main())
