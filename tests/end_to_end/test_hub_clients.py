"""The loopback Hub satisfies clients that know nothing of it: Python over LFS and Xet, `hf`, and JavaScript."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server import Hub, running_hub
from tests.running import ROOT

JAVASCRIPT = ROOT / "tests" / "js"
ROUND_TRIP = """
import filecmp, sys
from huggingface_hub import create_repo, snapshot_download, upload_folder
create_repo("me/python", private=True)
upload_folder(repo_id="me/python", folder_path=sys.argv[1])
upload_folder(repo_id="me/python", folder_path=sys.argv[1])
folder = snapshot_download("me/python")
assert filecmp.cmp(f"{folder}/model.safetensors", f"{sys.argv[1]}/model.safetensors", shallow=False)
"""


def run(hub: Hub, home: Path, *arguments: str | Path) -> str:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home)}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1" if hub.xet_folder is None else "0"}
    done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(50_000))
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.mark.parametrize("storage", ["lfs", "xet"])
def test_python(storage: str, folder: Path, tmp_path: Path) -> None:
    if storage == "xet":
        pytest.importorskip("hf_xet")
    with running_hub(tmp_path / "cas" if storage == "xet" else None) as hub:
        run(hub, tmp_path / "home", sys.executable, "-c", ROUND_TRIP, folder)
        assert len(hub.repos["me/python"].commits) == 2
        large = hub.repos["me/python"].commits[-1][2]["model.safetensors"]
        assert bool(large.xet_hash) == (storage == "xet")
        assert bool(hub.blobs) == (storage == "lfs")


def test_the_hf_command(folder: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "hf"
    if not command.exists() and shutil.which("hf") is None:
        pytest.skip("the hf command is not installed")
    hf = command if command.exists() else Path(str(shutil.which("hf")))
    with running_hub() as hub:
        run(hub, tmp_path / "home", hf, "upload", "me/command", folder, "--private")
        assert hub.repos["me/command"].private
        assert hub.files("me/command")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        run(hub, tmp_path / "home", hf, "download", "me/command", "--local-dir", tmp_path / "fetched")
        for name in ("model.safetensors", "config.json", "README.md"):
            assert (tmp_path / "fetched" / name).read_bytes() == (folder / name).read_bytes()


def test_javascript(tmp_path: Path) -> None:
    if shutil.which("node") is None or not (ROOT / "node_modules" / "@huggingface").is_dir():
        pytest.skip(
            "no JavaScript client: npm install --no-save --no-package-lock @huggingface/hub@2 in the top folder"
        )
    with running_hub() as hub:
        found = json.loads(run(hub, tmp_path, "node", JAVASCRIPT / "client.mjs", hub.url, hub.token))
        listed = [".gitattributes", "config.json", "model.safetensors"]
        assert found == {"user": "me", "listed": listed, "right": True, "hidden": 401}
        assert hub.repos["me/from-javascript"].private
