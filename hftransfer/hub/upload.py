"""The network side of a push: one commit with everything, tried again while the Hub is busy.

The Hub's client does not try a commit again after a 503, and a commit whose answer is lost may have been made. So every
attempt looks anew at what the repository holds, sends what differs on top of exactly that commit, and has nothing to do
when an earlier attempt came through.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from hftransfer.errors import HubError

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before the next attempt, unless the Hub says how long to wait."""
LONGEST_WAIT = 300.0
BUSY = (408, 429, 500, 502, 503, 504)
MOVED = (409, 412)
"""Somebody else has pushed, or an earlier attempt of ours came through."""
MEANING = {
    401: ("not logged in, or the token is not valid", "run `hf auth login`, or set HF_TOKEN to a token that may write"),
    403: ("the token may not write there", "use a token with write access, or your own name before the slash"),
    404: ("no such repository, or it is hidden from this token", "check the name, and `hf auth whoami`"),
    409: ("somebody else keeps changing the repository", "try again"),
    412: ("somebody else keeps changing the repository", "try again"),
    413: ("a file or the commit is too large for the Hub", "see the Hub's limits on repository size"),
}
# Files of an earlier model that would be loaded beside the new one, or in its place.
REPLACED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_*",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "spiece.model",
    "hftransfer_probe.json",
)
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Where a push goes.

    Attributes:
        api: The client.
        repo: The repository, "user/name".
        private: Whether it is, or will be, private.
        exists: Whether it is there already.
    """

    api: HfApi
    repo: str
    private: bool
    exists: bool


def find_target(repo: str, *, private: bool) -> Target:
    """Check login, name and visibility of a repository; changes nothing.

    Args:
        repo: "user/name", or "name" for a repository of whoever is logged in.
        private: Whether the repository shall be private.

    Raises:
        HubError: If nobody is logged in, the name cannot be one, or the repository is there with the other visibility.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(str(error).split(":")[0], where=repo, fix="give a name such as me/my-model") from error
    api = HfApi(library_name="hftransfer")
    user = patiently(api.whoami, repo)["name"]
    repo = repo if "/" in repo else f"{user}/{repo}"
    try:
        found: ModelInfo | None = patiently(lambda: api.model_info(repo), repo, expected=RepositoryNotFoundError)
    except RepositoryNotFoundError:
        found = None
    if found is not None and bool(found.private) != private:
        is_so = "private" if found.private else "public"
        raise HubError(
            f"exists and is {is_so}",
            where=repo,
            fix=f"push with --{is_so}, or change its visibility on the Hub first; a push never does",
        )
    return Target(api, repo, private, found is not None)


def upload(folder: Path, target: Target, message: str) -> str:
    """Make the repository hold the files of a folder, in one commit; nothing is sent when it does already.

    Args:
        folder: The files, all of them at the top.
        target: Where to.
        message: The commit's title.

    Returns:
        The address of the commit that has them.

    Raises:
        HubError: If the Hub refuses or stays busy; the repository is then as it was, or new and empty.
    """
    api, repo = target.api, target.repo
    if not target.exists:
        patiently(lambda: api.create_repo(repo, private=target.private, exist_ok=True), repo)

    def attempt() -> str:
        info = api.model_info(repo, files_metadata=True)
        there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        local = {path.name: path for path in sorted(folder.iterdir())}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, str(path)) for name, path in local.items() if not _is_same(path, there.get(name))
        ]
        # What lies in folders is somebody else's: a push writes to the top alone.
        top = [name for name in there if "/" not in name and name not in local]
        stale = [name for name in top if any(fnmatch(name, one) for one in REPLACED)]
        operations += [CommitOperationDelete(name) for name in stale]
        if not operations:
            return f"{api.endpoint}/{repo}/commit/{info.sha}"
        commit: Any = api.create_commit(repo, operations, commit_message=message, parent_commit=info.sha)
        return str(commit.commit_url)

    return patiently(attempt, repo, again=(*BUSY, *MOVED))


def patiently(
    action: Callable[[], T],
    repo: str,
    *,
    again: tuple[int, ...] = BUSY,
    expected: type[Exception] | tuple[type[Exception], ...] = (),
) -> T:
    """Do something on the Hub, again and again while it is busy or the connection fails.

    Args:
        action: What to do.
        repo: The repository, for messages.
        again: The statuses after which it is worth another attempt.
        expected: What is passed on as it is.

    Raises:
        HubError: If it is refused, or the Hub stays busy.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except expected:
            raise
        except Exception as error:
            status = _status(error)
            transient = status in again if status is not None else _is_connection(error)
            if not transient or wait is None:
                raise explain(error, repo) from error
            time.sleep(_wait_of(error) or wait)
    raise AssertionError("the last attempt returns or raises")


def explain(error: Exception, repo: str) -> Exception:
    """What the user can do about an error of the Hub's client; the error itself if that is nothing."""
    status = _status(error)
    if status in MEANING:
        what, fix = MEANING[status]
        return HubError(f"{what} ({status})", where=repo, fix=fix)
    if status is not None:
        return HubError(f"the Hub answers {status}", where=repo, fix="nothing was published; try again later")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in _causes(error)) or constants.HF_HUB_OFFLINE:
        return HubError("HF_HUB_OFFLINE is set", where=repo, fix="unset it")
    if isinstance(error, HFValidationError):
        return HubError("no folder, and no name of a repository", where=repo, fix="check the name")
    if _is_connection(error):
        return HubError("the Hub cannot be reached", where=repo, fix="nothing was published; check the connection")
    if type(error).__name__ == "LocalTokenNotFoundError":
        what, fix = MEANING[401]
        return HubError(what, where=repo, fix=fix)
    if isinstance(error, OSError | ValueError | RuntimeError):
        return HubError(" ".join(str(error).split())[:300] or type(error).__name__, where=repo)
    return error


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it; uploads of large files wrap the Hub's answer."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _status(error: Exception) -> int | None:
    """The HTTP status that an error is about, if it is about one."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(cause, HfHubHTTPError) and response is not None:
            return int(response.status_code)
    # hf_xet, which uploads large files, says it in words.
    named = re.search(r"status(?: code)?:? \D{0,3}([45]\d\d)\b", str(error), re.IGNORECASE)
    return int(named[1]) if named else None


def _is_connection(error: Exception) -> bool:
    """Whether the connection failed: the client's HTTP library has changed its name more than once."""
    names = {type(cause).__module__.partition(".")[0] for cause in _causes(error)}
    return bool(names & {"httpx", "httpx2", "httpcore", "httpcore2"}) or isinstance(
        error, ConnectionError | TimeoutError
    )


def _wait_of(error: Exception) -> float | None:
    """The seconds after which the Hub wants to be asked again, if it says so."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        said = str(response.headers.get("Retry-After", "")) if response is not None else ""
        if said.isdigit():
            return min(float(said), LONGEST_WAIT)
    return None


def _is_same(path: Path, sibling: Any) -> bool:
    """Whether the Hub's file has the content of the local one."""
    if sibling is None:
        return False
    size = path.stat().st_size
    lfs = sibling.lfs
    with path.open("rb") as file:
        if lfs is not None:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == lfs.sha256)
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        digest.update(file.read())
    return bool(digest.hexdigest() == sibling.blob_id)
