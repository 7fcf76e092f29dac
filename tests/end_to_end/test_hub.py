"""Pushes against a Hub on loopback: one commit with everything or nothing at all, whatever goes wrong on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from hftransfer import Run
from tests.hub_client import Client, running_client
from tests.hub_server import Fault, Hub, running_hub
from tests.tiny_runs import tiny_run

COMMIT = r"/commit/main$"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running_client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def run(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A plain model, to be read only."""
    return tiny_run(
        "text_classification", "full_fine_tuning", checkpoints / "bert", tmp_path_factory.mktemp("runs") / "plain"
    )


@pytest.fixture(scope="module")
def adapter(hub: Hub, client: Client, checkpoints: Path) -> str:
    """The folder of a run whose adapter belongs to a checkpoint on the Hub; it knows its commit."""
    client.run(
        f"huggingface_hub.create_repo('me/base'); huggingface_hub.upload_folder(repo_id='me/base', "
        f"folder_path={str(checkpoints / 'bert')!r})"
    )
    folder: str = client.run(
        "from tests.tiny_runs import tiny_run\n"
        "result = str(tiny_run('text_classification', 'lora', 'me/base', Path('adapter').absolute()).folder)"
    )
    return folder


@pytest.fixture(autouse=True)
def _nothing_wrong(hub: Hub) -> None:
    hub.faults.clear()
    hub.requests.clear()


def push(run: Any, name: str, more: str = "") -> str:
    folder = str(getattr(run, "folder", run))
    return f"result = Run({folder!r}).push_to_hub({name!r}{more})"


def logits(source: str) -> str:
    """Code for what plain transformers give: logits and label names."""
    return (
        f"model = transformers.AutoModelForSequenceClassification.from_pretrained({source!r})\n"
        f"tokens = transformers.AutoTokenizer.from_pretrained({source!r})('the film was good', return_tensors='pt')\n"
        "result = [model(**tokens).logits.tolist(), model.config.id2label]"
    )


def test_one_private_commit_has_everything_and_loads_by_name(hub: Hub, client: Client, run: Run) -> None:
    url = client.run(push(run, "plain"))
    repo = hub.repos["me/plain"]
    assert repo.private
    assert len(repo.commits) == 2
    assert url.endswith(f"/me/plain/commit/{repo.commits[-1][0]}")
    files = hub.files("me/plain")
    expected = {path.name for path in run.model_folder.iterdir()} | {"metrics.json", "recipe.yaml", ".gitattributes"}
    assert set(files) == expected
    assert files["model.safetensors"] == (run.model_folder / "model.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert config["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}
    assert (config["label2id"]["yes"], config["problem_type"]) == (2, "single_label_classification")
    assert json.loads(files["metrics.json"]) == run.metrics
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["checkpoint"] == "bert"
    assert str(run.folder.parent) not in files["recipe.yaml"].decode()
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == "plain"
    assert card.data.eval_results[0].metric_value == run.metrics["test"][card.data.eval_results[0].metric_name]
    found = client.run(logits("me/plain"))
    assert found == client.run(logits(str(run.model_folder)))
    assert found[1]["2"] == "yes"
    hidden = client.ask("huggingface_hub.hf_hub_download('me/plain', 'metrics.json', token=False)")["error"]
    assert "RepositoryNotFoundError" in hidden


def test_pushing_again_makes_no_commit(hub: Hub, client: Client, run: Run) -> None:
    first = client.run(push(run, "twice"))
    hub.requests.clear()
    assert client.run(push(run, "twice")) == first
    assert len(hub.repos["me/twice"].commits) == 2
    assert not [route for method, route, _ in hub.requests if method in ("POST", "PUT")]


FAULTS = {
    "429 with the seconds to wait": [Fault(COMMIT, 429, headers={"Retry-After": "7"})],
    "500": [Fault(COMMIT, 500)],
    "503 three times": [Fault(COMMIT, 503, times=3)],
    "503 though the commit was made": [Fault(COMMIT, 503, done=True)],
    "reset": [Fault(COMMIT, reset=True)],
    "reset though the commit was made": [Fault(COMMIT, reset=True, done=True)],
    "slow": [Fault(COMMIT, slow=0.5)],
    "409, somebody else was faster": [Fault(COMMIT, 409)],
    "412, somebody else was faster": [Fault(COMMIT, 412)],
    "503 where large files go": [Fault(r"^/lfs/", 503, method="PUT")],
    "reset where large files go": [Fault(r"^/lfs/", reset=True, method="PUT")],
    "500 while they are announced": [Fault(r"/objects/batch$", 500, times=2)],
    "503 in creating the repository": [Fault(r"/repos/create$", 503)],
    "reset though the repository was created": [Fault(r"/repos/create$", reset=True, done=True)],
    "429 in asking who it is": [Fault(r"/whoami-v2$", 429, method="GET")],
    "503 in looking at the repository": [Fault(r"/api/models/", 503, times=2, method="GET")],
    "everything at once": [
        Fault(r"/repos/create$", 429),
        Fault(r"/preupload/main$", 503),
        Fault(r"^/lfs/", 500, method="PUT"),
        Fault(COMMIT, reset=True, times=2),
    ],
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_push_survives(name: str, hub: Hub, client: Client, run: Run) -> None:
    repo = re.sub(r"\W+", "-", name)
    hub.faults = [*FAULTS[name]]
    waits = client.run(f"{push(run, repo)}\nresult = list(waits)")
    assert all(fault.times == 0 for fault in hub.faults)
    assert len(hub.repos[f"me/{repo}"].commits) == 2
    assert hub.files(f"me/{repo}")["model.safetensors"] == (run.model_folder / "model.safetensors").read_bytes()
    if "seconds to wait" in name:
        assert 7 in waits
    elif "slow" not in name:
        assert waits


@pytest.mark.parametrize(
    ("status", "path", "says"),
    [
        (401, r"/whoami-v2$", "hf auth login"),
        (403, r"/repos/create$", "write access"),
        (404, COMMIT, "check the name"),
        (413, COMMIT, "too large"),
        (400, COMMIT, "answers 400"),
        (503, COMMIT, "answers 503"),
    ],
)
def test_a_refused_push_leaves_nothing_behind(
    status: int, path: str, says: str, hub: Hub, client: Client, run: Run
) -> None:
    name = f"refused-{status}"
    hub.faults = [Fault(path, status, times=99, method=method) for method in ("GET", "POST")]
    assert says in client.refused(push(run, name))
    assert len(hub.repos[f"me/{name}"].commits if f"me/{name}" in hub.repos else [0]) == 1
    tries = [route for _, route, answer in hub.requests if re.search(path, route) and answer == status]
    assert len(tries) == 7 if status == 503 else len(tries) == 1


def test_others_names_and_the_other_visibility_are_refused(hub: Hub, client: Client, run: Run) -> None:
    assert "403" in client.refused(push(run, "other/model"))
    assert "name such as" in client.refused(push(run, "a/b/c"))
    client.run(push(run, "open", ", private=False"))
    assert not hub.repos["me/open"].private
    assert "exists and is public" in client.refused(push(run, "open"))
    assert client.run(push(run, "open", ", private=False")) is not None


def test_secrets_and_models_that_are_not_the_trained_one_stay_here(
    hub: Hub, client: Client, checkpoints: Path, tmp_path: Path
) -> None:
    run = tiny_run("text_classification", "full_fine_tuning", checkpoints / "bert", tmp_path / "run")
    (run.model_folder / "notes.txt").write_text(f"token = hf_{'a1' * 17}")
    assert "notes.txt, line 1: Hugging Face token" in client.refused(push(run, "secret"))
    (run.model_folder / "notes.txt").write_text(f"mine: {hub.token}")
    assert "notes.txt, line 1" in client.refused(push(run, "secret"))
    (run.model_folder / "notes.txt").unlink()
    config = run.model_folder / "config.json"
    config.write_text(config.read_text().replace('"perhaps"', '"maybe"'))
    assert "id2label" in client.refused(push(run, "secret"))
    weights = run.model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert "not the weights that metrics.json was measured on" in client.refused(push(run, "secret"))
    assert "me/secret" not in hub.repos
    assert not [route for method, route, _ in hub.requests if method in ("POST", "PUT")]


def test_an_adapter_keeps_its_labels_as_the_card_says(hub: Hub, client: Client, adapter: str) -> None:
    client.run(push(adapter, "adapter"))
    files = hub.files("me/adapter")
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/base"
    assert config["revision"] == hub.repos["me/base"].commits[-1][0]
    card = files["README.md"].decode()
    assert "Load this repository from a folder" in card
    assert ModelCard(card).data.base_model == "me/base"
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found = client.run(f"{code}\nresult = [found, classify.model.config.id2label]")
    assert found[0][0]["label"] in ("no", "perhaps", "yes")
    assert found[1]["2"] == "yes"
    # What the loud line in the card is about: by its name, the base checkpoint's labels are used.
    by_name = client.ask(logits("me/adapter"))
    assert by_name["error"] or by_name["result"][1].get("2") != "yes"
    assert client.run("result = hub.verify('me/adapter').problems") == []


def test_a_merged_push_replaces_an_adapter_and_loads_by_name(hub: Hub, client: Client, adapter: str) -> None:
    client.run(push(adapter, "merged"))
    client.run(push(adapter, "merged", ", merge=True"))
    files = hub.files("me/merged")
    assert not [name for name in files if name.startswith("adapter")]
    assert "Load this repository from a folder" not in files["README.md"].decode()
    merged, expected = client.run(logits("me/merged")), client.run(logits(f"{adapter}/model"))
    assert merged[1] == expected[1]
    assert merged[0][0] == pytest.approx(expected[0][0], abs=1e-5)
    assert client.run("result = hub.verify('me/merged').problems") == []


def test_an_adapter_of_a_local_folder_is_pushed_merged_or_not_at_all(
    hub: Hub, client: Client, checkpoints: Path, tmp_path: Path
) -> None:
    run = tiny_run("text_classification", "lora", checkpoints / "bert", tmp_path / "run")
    assert "--merge" in client.refused(push(run, "local"))
    assert "me/local" not in hub.repos
    client.run(push(run, "local", ", merge=True"))
    assert json.loads(hub.files("me/local")["config.json"])["id2label"]["1"] == "perhaps"


def test_a_push_leaves_what_lies_in_folders_alone(hub: Hub, client: Client, run: Run, tmp_path: Path) -> None:
    others = ("sub/model.safetensors", "adapter_v1/notes.md", "pytorch_model.bin")
    for name in others:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("somebody's")
    client.run(
        f"huggingface_hub.create_repo('me/shared', private=True); huggingface_hub.upload_folder(repo_id='me/shared', "
        f"folder_path={str(tmp_path)!r})"
    )
    client.run(push(run, "shared"))
    files = hub.files("me/shared")
    assert {*others[:2], "model.safetensors"} <= set(files)
    assert "pytorch_model.bin" not in files, "weights beside the pushed ones would be loaded in their place"


def test_a_folder_named_from_elsewhere_is_no_repository(
    hub: Hub, client: Client, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoints.parent)
    name = f"{checkpoints.name}/bert"
    plain, adapter = (
        tiny_run("text_classification", strategy, name, tmp_path / strategy) for strategy in ("bitfit", "lora")
    )
    monkeypatch.chdir(tmp_path)
    for run in (plain, adapter):
        run.write_card()
        card = (run.model_folder / "README.md").read_text()
        assert "huggingface.co" not in card.split("```")[0]
        assert "base_model" not in card
    # The client's working folder is another one as well.
    assert "--merge" in client.refused(push(adapter, "elsewhere"))
    assert "me/elsewhere" not in hub.repos


def test_a_recipe_pushes_at_its_end_and_asks_before_it_begins(hub: Hub, client: Client, tmp_path: Path) -> None:
    def train(name: str, more: str = "") -> str:
        return (
            "from tests.tiny_runs import tiny_run\n"
            f"tiny_run('text_classification', 'full_fine_tuning', 'me/base', Path({str(tmp_path / name)!r}), "
            f"push_to_hub=True{more})"
        )

    hub.faults = [Fault(r"/whoami-v2$", 401, method="GET")]
    assert "hf auth login" in client.refused(train("never"))
    assert not (tmp_path / "never").exists()
    client.run(train("at-the-end", ", hub_private_repo=False"))
    assert not hub.repos["me/at-the-end"].private
    # The training is not lost when the push is refused.
    hub.faults = [Fault(COMMIT, 413)]
    assert "too large" in client.refused(train("kept", ", hub_model_id='me/other-name'"))
    assert hub.repos["me/other-name"].private
    assert (tmp_path / "kept" / "model" / "model.safetensors").is_file()
