"""The store: found by content, whole or absent, within a budget, safe among processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hftransfer.caching import store as module
from hftransfer.caching.states import States
from hftransfer.caching.store import Space, StateStore, hash_rows

KEY = {"boundary": 3, "dtype": "fp32", "width": 4, "checkpoint": "c", "head_input": "tokens"}


def rows_of(lengths: list[int], start: int = 0) -> tuple[Any, Any, torch.Tensor]:
    """Distinct rows of these lengths: their hashes, lengths and states."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(start, start + offsets[-1], dtype=np.int32)
    states = torch.from_numpy(ids).float()[:, None] * torch.ones(4)
    return hash_rows({"input_ids": ids}, offsets), np.asarray(lengths), states


def write(space: Space, hashes: Any, lengths: Any, states: torch.Tensor) -> None:
    with space.writer() as writer:
        writer.append(hashes, lengths, states)


def never(rows: Any) -> list[torch.Tensor]:
    raise AssertionError(f"rows {rows} were computed")


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    hashes, lengths, states = rows_of([2, 3, 1])
    space = StateStore(tmp_path).space(KEY)
    write(space, hashes, lengths, states)
    found = States(StateStore(tmp_path).space(KEY).shards(), hashes, 4)
    assert found.found_N.all()
    batch = found.gather(np.asarray([2, 0]), never)
    assert torch.equal(batch[0, :1], states[5:6])
    assert torch.equal(batch[1, :2], states[:2])
    assert not batch[0, 1:].any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_precision_on_disk(tmp_path: Path, dtype: str) -> None:
    hashes, lengths, states = rows_of([1, 1, 1])
    space = StateStore(tmp_path).space({**KEY, "dtype": dtype})
    write(space, hashes, lengths, states / 3)
    assert (next(space.folder.glob("shard-*")) / "states.bin").stat().st_size == 12 * (4 if dtype == "fp32" else 2)
    batch = States(space.shards(), hashes, 4).gather(np.arange(3), never)
    assert torch.equal(batch[:, 0], (states / 3).to(module.DTYPES[dtype]).float())


@pytest.mark.parametrize(("dtype", "number"), [("fp16", 70_000.0), ("fp32", float("nan")), ("bf16", float("inf"))])
def test_rows_that_the_precision_cannot_hold_are_left_out(tmp_path: Path, dtype: str, number: float) -> None:
    hashes, lengths, states = rows_of([2, 3, 1, 1])
    states[3, 1] = states[6, 0] = number
    space = StateStore(tmp_path).space({**KEY, "dtype": dtype})
    with space.writer() as writer:
        writer.append(hashes, lengths, states)
    assert (writer.rows, writer.not_finite, space.num_rows()) == (2, 2, 2)
    found = States(space.shards(), hashes, 4)
    assert found.found_N.tolist() == [True, False, True, False]
    batch = found.gather(np.asarray([2, 0]), never)
    assert torch.equal(batch[0, :1], states[5:6])
    assert torch.equal(batch[1, :2], states[:2])


def test_a_shard_of_rows_that_are_all_left_out_is_none(tmp_path: Path) -> None:
    hashes, lengths, states = rows_of([2, 1])
    space = StateStore(tmp_path).space({**KEY, "dtype": "fp16"})
    write(space, hashes, lengths, states + 1e9)
    assert space.shards() == []
    assert list(space.folder.glob("*shard*")) == []


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=12))
def test_addresses_are_equal_exactly_where_rows_are(rows: list[list[int]]) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    ids = np.asarray([number for row in rows for number in row], np.int32)
    hashes = hash_rows({"input_ids": ids, "token_type_ids": np.zeros_like(ids)}, offsets)
    for first, left in enumerate(rows):
        for second, right in enumerate(rows):
            assert (hashes[first] == hashes[second]).all() == (left == right)


def test_addresses_depend_on_every_column_and_its_name() -> None:
    ids, zeros, offsets = np.asarray([1, 2], np.int32), np.zeros(2, np.int32), np.asarray([0, 2])
    seen = {
        hash_rows(columns, offsets).tobytes()
        for columns in (
            {"input_ids": ids},
            {"input_ids": ids, "token_type_ids": zeros},
            {"input_ids": zeros, "token_type_ids": ids},
            {"input_ids": ids, "other": zeros},
        )
    }
    assert len(seen) == 4


@pytest.mark.parametrize("name", sorted(KEY))
def test_another_key_is_another_space(tmp_path: Path, name: str) -> None:
    hashes, lengths, states = rows_of([1, 2])
    store = StateStore(tmp_path)
    write(store.space(KEY), hashes, lengths, states)
    assert store.space({**KEY, name: "changed"}).folder != store.space(KEY).folder
    assert store.space(dict(reversed(KEY.items()))).folder == store.space(KEY).folder


def test_equal_rows_share_states_and_several_shards_are_joined(tmp_path: Path) -> None:
    space = StateStore(tmp_path).space(KEY)
    first, second = rows_of([2, 1]), rows_of([3], start=50)
    write(space, *first)
    write(space, *second)
    wanted = np.concatenate([first[0], second[0], first[0][:1]])
    found = States(space.shards(), wanted, 4)
    batch = found.gather(np.arange(4), never)
    assert torch.equal(batch[0], batch[3])
    assert torch.equal(batch[2], second[2])
    assert found.sources[0].shape[0] == 6  # in memory once


def test_states_stay_on_disk_where_they_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hftransfer.caching.states.MEMORY_BYTES", 0)
    space = StateStore(tmp_path).space(KEY)
    first, second = rows_of([2, 1]), rows_of([3], start=50)
    write(space, *first)
    write(space, *second)
    found = States(space.shards(), np.concatenate([first[0], second[0]]), 4)
    assert len(found.sources) == 2
    batch = found.gather(np.asarray([2, 1]), never)
    assert torch.equal(batch[0], second[2])
    assert torch.equal(batch[1, :1], first[2][2:])


def test_rows_without_states_are_computed(tmp_path: Path) -> None:
    space = StateStore(tmp_path).space(KEY)
    known, unknown = rows_of([2]), rows_of([3], start=50)
    write(space, *known)
    found = States(space.shards(), np.concatenate([unknown[0], known[0]]), 4)
    assert found.found_N.tolist() == [False, True]
    batch = found.gather(np.asarray([1, 0]), lambda rows: [unknown[2] for _ in rows])
    assert torch.equal(batch[0, :2], known[2])
    assert torch.equal(batch[1], unknown[2])


@pytest.mark.parametrize("file", ["states.bin", "index.npz", "meta.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_shard_is_removed_and_its_rows_are_missing(tmp_path: Path, file: str, damage: str) -> None:
    hashes, lengths, states = rows_of([2, 1])
    space = StateStore(tmp_path).space(KEY)
    write(space, hashes, lengths, states)
    path = next(space.folder.glob("shard-*")) / file
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    assert not States(space.shards(), hashes, 4).found_N.any()
    write(space, hashes, lengths, states)
    assert States(space.shards(), hashes, 4).found_N.all()


NO_MANIFESTS = ("", '{"rows": 2, "byt', "[]", "null", "{}", '{"rows": "two"}', '{"rows": null}')


@pytest.mark.parametrize("text", NO_MANIFESTS)
def test_a_shard_without_a_manifest_has_no_rows_and_is_removed_when_it_is_opened(tmp_path: Path, text: str) -> None:
    space = StateStore(tmp_path).space(KEY)
    write(space, *rows_of([2, 1]))
    manifest = next(space.folder.glob("shard-*/meta.json"))
    manifest.write_text(text)
    assert space.num_rows() == 0
    assert manifest.exists(), "who counts does not remove"
    assert space.shards() == []
    assert not manifest.exists()


def test_a_shard_that_is_removed_while_rows_are_counted_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = StateStore(tmp_path).space(KEY)
    write(space, *rows_of([2, 1]))
    read = Path.read_text

    def removed_before(path: Path, *rest: Any, **options: Any) -> str:
        shutil.rmtree(space.folder)
        return read(path, *rest, **options)

    monkeypatch.setattr(Path, "read_text", removed_before)
    assert space.num_rows() == 0


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    hashes, lengths, states = rows_of([2, 1])
    space = StateStore(tmp_path).space(KEY)
    with pytest.raises(RuntimeError), space.writer() as writer:
        writer.append(hashes, lengths, states.view(1, 1, -1).expand(-2, 1, 1))
    assert [path.name for path in space.folder.iterdir()] == ["key.json"]


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    space = store.space(KEY)
    write(space, *rows_of([1]))
    old, new = space.folder / ".writing-old", space.folder / ".writing-new"
    for folder in (old, new):
        folder.mkdir()
    long_ago = time.time() - 2 * module.ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    store.prune(max_bytes=1 << 30)
    assert not old.exists()
    assert new.exists()


def test_room_is_made_by_the_least_recently_used(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    spaces = [store.space({**KEY, "boundary": boundary}) for boundary in range(3)]
    for age, space in enumerate(spaces):
        write(space, *rows_of([100]))
        os.utime(space.folder / "key.json", (1000 - age, 1000 - age))
    # A manifest says how long the encoding took, so sizes differ by some bytes.
    sizes = [space.used_bytes() for space in spaces]
    store.max_bytes = sum(sizes)
    assert store.make_room(min(sizes), keep=[spaces[2]]) == min(sizes)
    assert [space.folder.exists() for space in spaces] == [True, False, True]
    assert store.make_room(10 * max(sizes), keep=[spaces[2]]) == sizes[0] + sizes[1]
    assert [space.folder.exists() for space in spaces] == [False, False, True]


def test_no_budget_leaves_no_room(tmp_path: Path) -> None:
    store = StateStore(tmp_path, max_bytes=0)
    assert store.make_room(1, keep=[store.space(KEY)]) == 0


def test_without_a_budget_nothing_is_removed(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    write(store.space(KEY), *rows_of([1]))
    assert store.make_room(1 << 60, keep=[store.space({**KEY, "boundary": 9})]) < 1 << 60
    assert len(store.spaces()) == 1


def test_prune_keeps_what_was_used_lately(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    old, new = (store.space({**KEY, "boundary": boundary}) for boundary in range(2))
    for space in (old, new):
        write(space, *rows_of([1]))
    week_ago = time.time() - 7 * 86400
    os.utime(old.folder / "key.json", (week_ago, week_ago))
    assert [space.folder for space in store.prune(older_than_days=1)] == [old.folder]
    assert [space.folder for space in store.prune()] == [new.folder]
    assert store.used_bytes() == 0


def _write_many(root: Path, number: int) -> None:
    for part in range(5):
        write(StateStore(root).space(KEY), *rows_of([2, 3], start=1000 * number + 10 * part))


def test_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    wanted = np.concatenate([rows_of([2, 3], start=1000 * n + 10 * part)[0] for n in range(3) for part in range(5)])
    space = StateStore(tmp_path).space(KEY)
    assert States(space.shards(), wanted, 4).found_N.all()
    assert space.num_rows() == 30


def test_what_was_used_lately_is_not_removed_where_that_is_asked_for(tmp_path: Path) -> None:
    spaces = [StateStore(tmp_path).space({**KEY, "boundary": boundary}) for boundary in range(3)]
    for age, space in enumerate(spaces):
        write(space, *rows_of([100]))
        os.utime(space.folder / "key.json", (1000 + age, 1000 + age))
    store = StateStore(tmp_path, max_bytes=3 * spaces[0].used_bytes(), keep_since=1001.0)
    store.make_room(10**9, keep=[spaces[2]])
    assert [space.folder.exists() for space in spaces] == [False, True, True]


def test_what_is_promised_is_taken_from_the_room_and_spaces_in_use_stay(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    spaces = [store.space({**KEY, "boundary": boundary}) for boundary in range(2)]
    for space in spaces:
        write(space, *rows_of([100]))
    store.max_bytes = store.used_bytes() + 1000
    assert store.make_room(800, keep=spaces) == 800
    assert store.make_room(800, keep=spaces, promised=800) == 200
    assert all(space.folder.exists() for space in spaces)
    assert StateStore(tmp_path / "new").make_room(1 << 60, keep=[], promised=1 << 60) == 0


def test_room_made_while_a_shard_is_written_loses_nothing(tmp_path: Path) -> None:
    space = StateStore(tmp_path).space(KEY)
    hashes, lengths, states = rows_of([2, 3])
    with space.writer() as writer:
        writer.append(hashes, lengths, states)
        # Another process makes room: it lists the folder before the shard is begun, and cannot remove what it holds.
        (space.folder / "key.json").unlink()
    assert States(space.shards(), hashes, 4).found_N.all()
    assert [one.folder for one in StateStore(tmp_path).spaces()] == [space.folder], "it can be listed and pruned again"


def test_a_folder_that_is_removed_while_it_is_opened_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = StateStore(tmp_path).space(KEY)
    hashes, lengths, states = rows_of([2, 3])
    write(space, hashes, lengths, states)
    opened = module._open_shard

    def open_and_remove(folder: Path, *rest: Any) -> Any:
        found = opened(folder, *rest)
        shutil.rmtree(space.folder)
        return found

    monkeypatch.setattr(module, "_open_shard", open_and_remove)
    found = States(space.shards(), hashes, 4)
    assert torch.equal(found.gather(np.asarray([0]), never)[0], states[:2])
    assert not space.folder.exists()


def test_without_a_budget_half_of_the_disk_stays_free_however_often_room_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 100 << 30
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(200 << 30, 0, free))
    store, written = StateStore(tmp_path), 0
    for _ in range(8):
        room = store.make_room(20 << 30, keep=[])
        free, written = free - room, written + room
    assert written == 50 << 30


def test_a_shard_is_charged_with_its_share_of_the_pass(tmp_path: Path) -> None:
    spaces = [StateStore(tmp_path).space({**KEY, "boundary": boundary}) for boundary in range(2)]
    with spaces[0].writer() as whole, spaces[1].writer(0.25) as part:
        time.sleep(0.05)
        for writer in (whole, part):
            writer.append(*rows_of([2]))
    seconds = [json.loads(next(space.folder.glob("shard-*/meta.json")).read_text())["seconds"] for space in spaces]
    # The inner one is sealed first.
    assert 0.01 < seconds[1] <= 0.25 * seconds[0]
