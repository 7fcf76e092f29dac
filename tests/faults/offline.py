"""Without a network: every verb works on local files, and nothing tries to connect.

python -m tests.faults.offline [--verbose]      prints one row of the table of faults

HF_HUB_OFFLINE is left unset on purpose: what would ask the Hub is not to be silenced, but to be absent. Attempts are
counted twice: by Python's audit events, and, where strace is installed, by the system calls of all processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from tests.faults.small_runs import write_examples
from tests.tiny_models import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
# Starts the command line with a witness for whatever Python does about names and connections.
WITNESS = """
import os, sys
def witness(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["WITNESS"], "a") as file:
            print(event, arguments[-1] if event == "socket.connect" else arguments[:2], file=file)
sys.addaudithook(witness)
from hftransfer.cli.main import main
main(sys.argv[1:])
"""
CONTROL = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=0.5)"
CONNECTS = re.compile(r"(?:connect|sendto)\(.*AF_INET")
TRAIN = ("--data.train", "train.jsonl", "--optim.num_train_epochs", "1", "--output_dir")
GENERATION = ("--data.label", "label", "--task.max_new_tokens", "4")

COMMANDS = [
    ("--help",),
    ("recipes",),
    ("copy", "text_classification", "--to", "mine"),
    *(
        ("run", "text_classification", "--checkpoint", "bert", *TRAIN, f"runs/{strategy}", "--strategy.type", strategy)
        for strategy in ("feature_extraction", "full_fine_tuning", "lora", "gradual_unfreezing")
    ),
    ("run", "masked_lm", "--checkpoint", "mlm", *TRAIN, "runs/mlm"),
    ("run", "causal_lm", "--checkpoint", "gpt2", *TRAIN, "runs/gpt2", *GENERATION),
    ("run", "seq2seq", "--checkpoint", "t5", *TRAIN, "runs/t5", *GENERATION),
    ("predict", "runs/lora", "--input", "train.jsonl", "--output", "predictions.csv"),
    ("evaluate", "runs/full_fine_tuning", "--data.test", "train.jsonl"),
    ("cache", "list"),
    ("cache", "prune"),
]


def attempts(folder: Path, code: str, *arguments: str) -> tuple[int, list[str], str]:
    """Run Python code; its exit status, what tried to connect, and its output."""
    witness, trace = folder / "witness", folder / "trace"
    for path in (witness, trace):
        path.write_text("")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "home"),
        "HFTRANSFER_CACHE": str(folder / "states"),
        "OMP_NUM_THREADS": "1",
        "WITNESS": str(witness),
    }
    prefix = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(trace)] if shutil.which("strace") else []
    command = [*prefix, sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seen = witness.read_text().splitlines() + [line for line in trace.read_text().splitlines() if CONNECTS.search(line)]
    return done.returncode, seen, done.stdout + done.stderr


def main() -> int:
    """Run every verb; the exit status says whether one failed or tried to connect."""
    failed, tried = 0, 0
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write_examples(folder / "train.jsonl", 60)
        write_tiny_checkpoint(folder / "bert", "bert")
        models = {"mlm": AutoModelForMaskedLM, "gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}
        for name, auto_class in models.items():
            write_tiny_checkpoint(folder / name, {"mlm": "bert"}.get(name, name), auto_class=auto_class)
        _, control, _ = attempts(folder, WITNESS.split("from hftransfer")[0] + CONTROL)
        assert control, "the witness sees nothing"
        for arguments in COMMANDS:
            status, seen, output = attempts(folder, WITNESS, *arguments)
            failed, tried = failed + (status != 0), tried + len(seen)
            if "--verbose" in sys.argv or status or seen:
                print(
                    f"status {status}, {len(seen)} attempts: {' '.join(arguments)}", *seen[:5], sep="\n  ", flush=True
                )
            if status:
                print(output[-2000:])
    how = "audit events and system calls" if shutil.which("strace") else "audit events"
    print(
        f"| no network | {len(COMMANDS) - failed} of {len(COMMANDS)} commands work, {tried} attempts to connect "
        f"({how}; HF_HUB_OFFLINE unset; a control that connects is seen) |"
    )
    return bool(failed or tried)


if __name__ == "__main__":
    sys.exit(main())
