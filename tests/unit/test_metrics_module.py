"""`hftransfer.metrics` is the public door to the metrics, and reaches no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

from hftransfer import metrics
from hftransfer.errors import UserError

ROOT = Path(__file__).parents[2]


def test_load_gives_a_metric_of_evaluate():
    metric = metrics.load("f1")
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=[0, 1, 1], references=[0, 1, 0]) == {"f1": pytest.approx(2 / 3)}


def test_names_are_those_of_the_hub():
    assert metrics.names() == [
        "accuracy",
        "average_precision",
        "balanced_accuracy",
        "f1",
        "matthews_correlation",
        "mse",
        "pearsonr",
        "r_squared",
        "roc_auc",
        "spearmanr",
    ]
    assert [metrics.load(name).name for name in metrics.names()] == metrics.names()


def test_unknown_name_is_a_user_error_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'spearmanr'"):
        metrics.load("spearman")


def test_no_connection_is_attempted():
    """In a fresh process without the offline setting, a socket to any address would fail the run."""
    code = """
import socket
def refuse(*arguments, **options):
    raise SystemExit(f"a connection was attempted: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import evaluate
from hftransfer import metrics
for name in metrics.names():
    metrics.load(name)
print(evaluate.combine([metrics.load("accuracy"), metrics.load("f1")]).compute(predictions=[0, 1], references=[0, 1]))
"""
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=online, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "{'accuracy': 1.0, 'f1': 1.0}"), result.stderr


def test_documentation_names_every_metric():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    assert set(metrics.names()) - named == set()
