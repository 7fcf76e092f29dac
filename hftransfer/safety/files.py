"""Files and folders that others may have prepared: private folders, plain names, links, whole writes."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hftransfer.errors import CacheError, CheckpointError, DataError, RecipeError

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A file of the Hub's cache lies in models--ORG--NAME/snapshots/COMMIT/ and is a link into models--ORG--NAME/blobs/.
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"
UNFINISHED = ".writing-"
"""How the name of a file or folder begins that is being written; a killed process leaves it."""


def check_private(folder: Path, fix: str) -> None:
    """Refuse a folder that somebody else owns or may write to; what cannot be read as a folder is harmless.

    Args:
        folder: The folder. A link counts as what it is, not as what it leads to.
        fix: What the message says to do.

    Raises:
        CacheError: It is another user's, others may write to it, or it is a link.
    """
    try:
        found = os.lstat(folder)
    except OSError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise CacheError("is a link", where=str(folder), fix=fix)
    if not stat.S_ISDIR(found.st_mode):
        return
    if hasattr(os, "geteuid"):
        if found.st_uid != os.geteuid():
            raise CacheError("belongs to another user, who could have written anything", where=str(folder), fix=fix)
        if found.st_mode & OTHERS_WRITE:
            raise CacheError(
                "other users may write to it", where=str(folder), fix=f"chmod go-w it if it is yours, or {fix}"
            )


def make_private(folder: Path, fix: str) -> None:
    """Make a folder that only this user may enter, parents included; one that is there already must be private.

    Raises:
        CacheError: As `check_private`.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with suppress(FileExistsError):
            os.mkdir(missing, PRIVATE_FOLDER)
    check_private(folder, fix)


def plain_name(name: str, where: str) -> str:
    """A name of a file that stays in its folder.

    Raises:
        CheckpointError: It is a path, or nothing.
    """
    if name in ("", ".", "..") or any(part in name for part in ("/", "\\", "\0")):
        raise CheckpointError(f"names {name[:80]!r}, which is not a file of this folder", where=where)
    return name


def check_files(folder: Path) -> None:
    """Refuse a folder with links that lead out of it, or with files that are no files (pipes, devices).

    A folder of the Hub's cache may link into the same repository's blobs, as the cache is made of such links.

    Raises:
        CheckpointError: With the name of the first such file.
    """
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == _SNAPSHOTS and (root.parent.parent / _BLOBS).is_dir():
        allowed.append(root.parent.parent / _BLOBS)
    for path in sorted(root.iterdir()):
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointError(
                "is a link that leads out of its folder",
                where=str(path),
                fix="put the file itself there, if it is yours",
            )
        if path.exists() and not (target.is_file() or target.is_dir()):
            raise CheckpointError("is no regular file", where=str(path), fix="remove it")


def check_no_links(folder: Path) -> None:
    """Refuse an output folder in which something is a link: what is written would land elsewhere. It may be one itself.

    Raises:
        RecipeError: With the first link.
    """
    checkpoints = folder / "checkpoints"
    inside = [*folder.iterdir(), *(checkpoints.iterdir() if checkpoints.is_dir() else ())]
    link = next((path for path in sorted(inside) if path.is_symlink()), None)
    if link is not None:
        raise RecipeError("is a link, so it is not written to", where=str(link), fix="remove it")


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A new file beside `path` that takes its place at the end, so that `path` is whole or as it was before.

    The file is made under a name that nobody could foresee, and only if there is none: no link is followed.

    Args:
        path: Where the file will be.
        mode: Its permissions, less the umask.
    """
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}{path.suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(*folders: Path) -> None:
    """Remove what a killed process had begun with `replacing` in folders to which nobody writes now."""
    for folder in folders:
        for path in folder.glob(f"{UNFINISHED}*"):
            if path.is_file() or path.is_symlink():
                path.unlink()


def check_output_file(output: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written, before anything heavy is done.

    Raises:
        DataError: If its ending is not among the suffixes, its folder is absent or it is a folder.
    """
    if output.suffix not in suffixes:
        raise DataError(f"cannot write {output.suffix!r} files", where=str(output), fix=f"use {', '.join(suffixes)}")
    if not output.parent.is_dir():
        raise DataError("no such folder", where=str(output.parent), fix="make it first")
    if output.is_dir():
        raise DataError("is a folder", where=str(output), fix="name a file")
    try:
        with tempfile.NamedTemporaryFile(prefix=UNFINISHED, dir=output.parent):
            pass
    except OSError as error:
        what = f"not writable ({error.strerror})"
        raise DataError(what, where=str(output.parent), fix="choose another folder") from None
