"""Tokens and keys are found in what is pushed, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hftransfer.hub.secrets import find_secrets
from tests.tiny_models import tiny_tokenizer

SECRETS = {
    "Hugging Face token": "hf_" + "aB3" * 12,
    "OpenAI or Anthropic key": "sk-proj-" + "aB3_" * 12,
    "AWS access key": "AKIA" + "AB12" * 4,
    "GitHub token": "ghp_" + "aB3d" * 9,
    "GitLab token": "glpat-" + "aB3d" * 5,
    "Google key": "AIza" + "aB3d5" * 7,
    "Slack token": "xoxb-" + "12345-" * 5,
    "Stripe key": "sk_live_" + "aB3d" * 6,
    "package index token": "pypi-" + "aB3d" * 13,
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "JSON web token": ".".join(["eyJ" + "aB3d" * 5, "eyJ" + "aB3d" * 5, "aB3d" * 5]),
    "password in an address": "postgres://anna:s3cretword@db.example/films",
    "password or key": 'api_key: "a1b2c3d4e5f6g7h8"',
}


@pytest.mark.parametrize("kind", list(SECRETS))
def test_a_secret_is_found_and_not_repeated(kind: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"checkpoint: m\nnote: {SECRETS[kind]}\n", encoding="utf-8")
    found = find_secrets(tmp_path)
    assert f"recipe.yaml, line 2: {kind}" in found
    assert SECRETS[kind] not in " ".join(found)


def test_a_secret_in_the_metadata_of_weights_is_found(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"note": SECRETS["Hugging Face token"]})
    assert find_secrets(tmp_path) == ["model.safetensors, line 1: Hugging Face token"]


def test_the_token_that_is_logged_in_is_found_whatever_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x my-odd-token y", encoding="utf-8")
    assert find_secrets(tmp_path) == []
    assert find_secrets(tmp_path, "my-odd-token") == ["notes.txt, line 1: the token that is logged in"]


def test_what_a_model_folder_holds_is_no_secret(tmp_path: Path) -> None:
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    lines = (
        '"pad_token": "[PAD]", "pad_token_id": 0, "sk-": 7, "hf_": 8, "akia": 9',
        "sha256: 005bf4bae77b5f13db0bb7cd64f1c8c25b2a0ff0e5f6f5d8e4c3b2a190807060",
        "https://example.org/user@host:8080/path, see arXiv:2106.09685",
        "password: the column with the password hints",
    )
    (tmp_path / "config.json").write_text("\n".join(lines), encoding="utf-8")
    assert find_secrets(tmp_path) == []
