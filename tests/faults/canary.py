"""A token in every place where a user may put one: it must turn up nowhere.

python -m tests.faults.canary [--verbose]      prints one row of the table of faults
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.faults.small_runs import write_examples
from tests.tiny_models import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
TOKEN = "hf_CanaryQwErTyUiOpAsDfGhJkLzXcVbNm12"
PASSWORD = "c4nary/pass+word=&?# of mine"
RUN = ("run", "text_classification", "--checkpoint", "checkpoint", "--optim.num_train_epochs", "1")
DATA = ("--data.train", "train.jsonl", "--output_dir", "run")
# Reaches the traceback of a defect: what fails names the token.
CRASH = """
import os, sys
from hftransfer.cli import main as cli
import hftransfer.training.loop as loop
def broken(self):
    raise RuntimeError(f"cannot use {os.environ['HF_TOKEN']} with {os.environ['DB_PASSWORD']}")
loop.Training.run = broken
cli.main(sys.argv[1:])
"""


@dataclass(frozen=True)
class Place:
    """A place for a token, and the command that meets it there.

    Attributes:
        name: Where the token is.
        arguments: Of the command line.
        status: The exit status that is right.
        files: Files to write, by name; those that hold the token are the user's own and are not searched.
        script: Python to run in place of the command line.
    """

    name: str
    arguments: tuple[str, ...]
    status: int = 2
    files: dict[str, str] = field(default_factory=dict)
    script: str | None = None


PLACES = [
    Place("the environment alone", (*RUN, *DATA), 0),
    Place("a crash", (*RUN, *DATA), 1, script=CRASH),
    Place("an unknown setting", (*RUN, *DATA, "--config", "r.yaml"), files={"r.yaml": f"token: {TOKEN}\n"}),
    Place("a known setting", (*RUN, "--data.train", "x", "--config", "r.yaml"), files={"r.yaml": f"seed: {TOKEN}\n"}),
    Place("the name of a setting", (*RUN, *DATA, "--config", "r.yaml"), files={"r.yaml": f"{TOKEN}: 1\n"}),
    Place("broken YAML", (*RUN, *DATA, "--config", "r.yaml"), files={"r.yaml": f"seed: !{TOKEN} [\n"}),
    Place("a nested setting", (*RUN, *DATA, "--config", "r.yaml"), files={"r.yaml": f"data: {{text: '{PASSWORD}'}}\n"}),
    Place("a flag", (*RUN, *DATA, "--hub_token", TOKEN)),
    Place("a flag with =", (*RUN, *DATA, f"--evaluation.metric={TOKEN}")),
    Place("the checkpoint's address", (*RUN[:2], "--checkpoint", f"https://me:{TOKEN}@hub/c", *DATA)),
    Place("the password of an address", (*RUN[:2], "--checkpoint", "https://me:hunter2hunter2@hub/c", *DATA)),
    Place("the checkpoint's revision", (*RUN[:2], "--checkpoint", f"org/name@{TOKEN}", *DATA)),
    Place("the data's address", (*RUN, "--data.train", f"https://hub/train.csv?token={TOKEN}", "--output_dir", "run")),
    Place("the data's path", (*RUN, "--data.train", f"{TOKEN}/train.jsonl", "--output_dir", "run")),
    Place("the output's path", (*RUN, "--data.train", "train.jsonl", "--output_dir", f"runs/{TOKEN}")),
    Place("a tracker", (*RUN, *DATA, "--trackers", f"[{TOKEN}]")),
    Place(
        "the model to predict with",
        ("predict", f"https://{TOKEN}@hub/m", "--input", "train.jsonl", "--output", "p.csv"),
    ),
    Place("the data to score", ("evaluate", "checkpoint", "--data.test", f"https://hub/t.csv?api_key={TOKEN}")),
    Place("the cache", ("cache", "list", "--folder", TOKEN)),
    Place("in base64", (*RUN[:2], "--checkpoint", base64.b64encode(f"me:{TOKEN}".encode()).decode(), *DATA)),
]


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it may turn up: plain, as part of an address, and in base64 wherever it starts."""
    yield from (form.encode() for form in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret)))
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + secret.encode())[4:-4]


def hits(content: bytes) -> int:
    """How many forms of the token and the password occur."""
    secrets = (TOKEN, PASSWORD, "hunter2hunter2")
    return sum(form in content for secret in secrets for form in set(forms(secret)))


def meet(place: Place, folder: Path) -> tuple[int, int, str]:
    """Run one command; hits in all that it printed and wrote, its exit status and its error line."""
    folder.mkdir()
    write_tiny_checkpoint(folder / "checkpoint", "bert")
    write_examples(folder / "train.jsonl", 60)
    for name, text in place.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "home"),
        "HFTRANSFER_CACHE": str(folder / "states"),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": TOKEN,
        "DB_PASSWORD": PASSWORD,
        "OMP_NUM_THREADS": "1",
    }
    start = ["-c", place.script] if place.script else ["-m", "hftransfer.cli.main"]
    done = subprocess.run([sys.executable, *start, *place.arguments], cwd=folder, env=environment, capture_output=True)
    found = hits(done.stdout) + hits(done.stderr)
    for path in folder.rglob("*"):
        own = path.name in place.files
        found += hits(str(path.relative_to(folder)).encode()) + (
            hits(path.read_bytes()) if path.is_file() and not own else 0
        )
    return (
        found,
        done.returncode,
        done.stderr.decode(errors="replace").strip().splitlines()[-1:][0] if done.stderr else "",
    )


def main() -> int:
    """Try every place; the exit status says whether the token turned up or a command ended otherwise than it should."""
    assert all(hits(b"x" + form + b"y") for form in forms(TOKEN)), "the search finds nothing"
    total = wrong = 0
    with tempfile.TemporaryDirectory() as home:
        for number, place in enumerate(PLACES):
            found, status, line = meet(place, Path(home, str(number)))
            total, wrong = total + found, wrong + (status != place.status)
            if "--verbose" in sys.argv or found or status != place.status:
                print(f"{found} hits, status {status}: {place.name}: {line}", flush=True)
    where = "in all files, file names and output, as plain text, base64 and URL encoding"
    found = f"{total} hits of {len(PLACES)} placed tokens {where}; {wrong} commands with another status than due"
    print(f"| token canary in environment, config, URL, data path | {found} |")
    return bool(total or wrong)


if __name__ == "__main__":
    sys.exit(main())
