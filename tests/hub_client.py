"""A process that talks to the loopback Hub.

The Hub's client reads its address when it is imported, and the tests run offline; so one process of its own, with its
own home, runs whatever Python it is given, one block after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hub_server import Hub
from tests.running import ROOT

START = """
import contextlib, json, os, sys, time, traceback
out, sys.stdout = sys.stdout, sys.stderr
waits, real_sleep = [], time.sleep
def sleep(seconds):
    waits.append(seconds)
    real_sleep(min(seconds, 0.01))
time.sleep = sleep
import huggingface_hub, torch, transformers
from pathlib import Path
from hftransfer import Run
from hftransfer.errors import UserError
from hftransfer import hub
from hftransfer.hub import publish, verification
from hftransfer.models.probe import check_folder
def here(folder):
    found = check_folder(folder)
    found |= {"problems": tuple(found["problems"]), "notes": tuple(found["notes"])}
    return verification.Verification(**found)
# A process for each check would cost seconds; test_left_behind.py starts one.
publish.check_in_fresh_process = verification.check_in_fresh_process = here
names = dict(globals())
for line in sys.stdin:
    waits.clear()
    names["result"] = None
    answer = {"error": None}
    try:
        exec(compile(json.loads(line), "block", "exec"), names)
        answer["result"] = names["result"]
    except UserError as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    except BaseException:
        answer["error"] = traceback.format_exc()
    print(json.dumps(answer), file=out, flush=True)
"""


class Client:
    """The process.

    Args:
        hub: The Hub that it talks to.
        home: Its Hugging Face home.
    """

    def __init__(self, hub: Hub, home: Path) -> None:
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HFTRANSFER_CACHE": str(home / "states"),
            "PYTHONPATH": str(ROOT),
        }
        self.log = (home / "log.txt").open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=home,
        )

    def ask(self, code: str) -> dict[str, Any]:
        """Run a block; its `result`, and its `error`, in one line for an error of the user."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, Path(self.log.name).read_text(encoding="utf-8")[-3000:]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, code: str) -> Any:
        """Run a block that must not fail; its `result`."""
        answer = self.ask(code)
        assert answer["error"] is None, answer["error"]
        return answer["result"]

    def refused(self, code: str) -> str:
        """Run a block that must end with an error of the user; its one line."""
        error = self.ask(code)["error"]
        assert error is not None
        assert error.startswith("HubError: "), error
        assert "\n" not in error
        return str(error)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        # Ended from outside: by itself it would take a while to unload everything.
        self.process.kill()
        self.process.wait(timeout=30)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.log.close()


@contextlib.contextmanager
def running_client(hub: Hub, home: Path) -> Iterator[Client]:
    client = Client(hub, home)
    try:
        yield client
    finally:
        client.close()
