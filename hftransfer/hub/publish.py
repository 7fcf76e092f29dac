"""Push: gather everything, look for secrets, verify, and publish in one commit; nothing leaves before all that."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from hftransfer.errors import HubError
from hftransfer.hub.secrets import find_secrets
from hftransfer.hub.upload import find_target, upload
from hftransfer.hub.verification import check_in_fresh_process
from hftransfer.models import probe
from hftransfer.models.load import load_trained
from hftransfer.models.save import save_model
from hftransfer.strategies.adapters import merge as merge_adapter

CARD = "README.md"
ADAPTER = "adapter_config.json"


def push(
    model_folder: Path,
    repo: str,
    *,
    card: Callable[[str, bool], str],
    files: Mapping[str, str],
    private: bool = True,
    merge: bool = False,
    local_base: bool = False,
) -> str:
    """Publish a model that has been verified, in one commit.

    Args:
        model_folder: The model, with its probe.
        repo: "user/name", or "name" for a repository of whoever is logged in.
        card: Writes the model card, given the repository's name and whether an adapter was merged.
        files: Name and text of more files.
        private: Whether the repository is private.
        merge: Publish a plain model, with the adapter folded into the weights.
        local_base: Whether its checkpoint was a folder when it was trained, wherever that is now.

    Returns:
        The address of the commit.

    Raises:
        HubError: If a secret is in the files, the folder does not give what the trained model gave, or the Hub
            refuses; the Hub is then as it was.
    """
    if not (model_folder / probe.PROBE_FILE).is_file():
        raise HubError(
            f"no {probe.PROBE_FILE} to verify it with", where=str(model_folder), fix="train it with this version"
        )
    merge = merge and (model_folder / ADAPTER).is_file()
    if not merge:
        _check_base(model_folder, local_base)
    target = find_target(repo, private=private)
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary, "model")
        if merge:
            save_merged(model_folder, staging)
        else:
            staging.mkdir()
            for path in sorted(model_folder.iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    os.symlink(path.resolve(), staging / path.name)
        _write(staging, {**files, CARD: card(target.repo, merge)})
        check(staging)
        return upload(staging, target, f"Upload {target.repo.partition('/')[2]}, trained with hftransfer")


def check(folder: Path) -> None:
    """Refuse a folder with a secret in it, or with another model than the one that was trained.

    Raises:
        HubError: Likewise.
    """
    secrets = find_secrets(folder, get_token())
    if secrets:
        more = f" ({len(secrets) - 1} more)" if len(secrets) > 1 else ""
        raise HubError(f"{secrets[0]}{more}", where="not pushed", fix="remove it, and revoke it if it was real")
    found = check_in_fresh_process(folder)
    if found.problems:
        more = f" ({len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise HubError(
            f"{found.problems[0]}{more}", where="not pushed", fix="the saved model is not the one that was trained"
        )


def save_merged(model_folder: Path, folder: Path) -> None:
    """Write a plain model with the adapter folded into its weights, and the probe of the model as it was trained."""
    loaded = load_trained(model_folder)
    expected: dict[str, Any] = json.loads((model_folder / probe.PROBE_FILE).read_text(encoding="utf-8"))

    def complete(written: Path) -> None:
        hashes = probe.file_hashes(written)
        text = json.dumps({**expected, "base": None, "sha256": hashes}, ensure_ascii=False)
        (written / probe.PROBE_FILE).write_text(f"{text}\n", encoding="utf-8")

    save_model(
        merge_adapter(loaded.model),
        loaded.tokenizer,
        folder,
        checkpoint=loaded.checkpoint,
        revision=None,
        config={},
        complete=complete,
    )


def _check_base(model_folder: Path, local: bool) -> None:
    """An adapter is of use to others only if its base checkpoint is on the Hub.

    Raises:
        HubError: If the base is a folder of this machine.
    """
    path = model_folder / ADAPTER
    if not path.is_file():
        return
    base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    if local or os.path.isdir(base) or os.path.isabs(base):
        raise HubError(
            f"the adapter belongs to {base}, a folder of this machine",
            where="not pushed",
            fix="--merge publishes a plain model",
        )


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        # What is there is a link into the run's folder.
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
