"""A Hub on loopback, as far as the clients use it: accounts, private repositories, commits, LFS, Xet's local storage.

No server that can be installed accepts uploads. This one satisfies the unmodified Python client, `from_pretrained`, the
`hf` command and the JavaScript client. Faults are put in its way one by one: an error status, a connection that is
reset before or after the work is done, a slow answer.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_storage import File, Repo, find_xet_hash, small_file

LFS_ABOVE_BYTES = 10_000
LFS_SUFFIXES = (".safetensors", ".bin", ".onnx")


@dataclass
class Fault:
    """What goes wrong with the next requests that match.

    Args:
        path: Regular expression of the path.
        status: Status to answer with, or 0.
        reset: Break the connection.
        done: Do the work first, and lose the answer.
        slow: Seconds to wait before answering.
        times: How often.
        method: HTTP method.
    """

    path: str
    status: int = 0
    reset: bool = False
    done: bool = False
    slow: float = 0.0
    times: int = 1
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """The server with all that it holds."""

    daemon_threads = True

    def __init__(self, xet_folder: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.xet_folder = xet_folder
        self.tokens = {"hf_" + "w" * 34: ("me", "write"), "hf_" + "o" * 34: ("other", "write")}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def token(self) -> str:
        """The token of "me"."""
        return next(iter(self.tokens))

    def files(self, repo: str) -> dict[str, bytes]:
        """The newest files of a repository, those in Xet's storage without content."""
        return {path: self.blobs.get(one.sha256, one.content) for path, one in self.repos[repo].commits[-1][2].items()}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave at any time."""


@contextlib.contextmanager
def running_hub(xet_folder: Path | None = None) -> Iterator[Hub]:
    hub = Hub(xet_folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        """Answer, with whatever fault is due."""
        self.body = self._read_body()
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        fault = self._fault()
        if fault is not None:
            time.sleep(fault.slow)
            if fault.done:
                with contextlib.suppress(Refused), self.server.lock:
                    self._answer()
            if fault.reset:
                self.close_connection = True
                self.connection.shutdown(SHUT_RDWR)
                return
            if fault.status:
                self._send(fault.status, {"error": f"fault {fault.status}"}, fault.headers)
                return
        try:
            with self.server.lock:
                status, value, headers = self._answer()
        except Refused as error:
            headers = {"X-Error-Message": error.message, **({"X-Error-Code": error.code} if error.code else {})}
            status, value = error.status, {"error": error.message}
        self._send(status, value, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fault(self) -> Fault | None:
        with self.server.lock:
            for fault in self.server.faults:
                if fault.times and fault.method == self.command and re.search(fault.path, self.route):
                    fault.times -= 1
                    return fault
        return None

    def _send(self, status: int, value: Any, headers: dict[str, str]) -> None:
        self.server.requests.append((self.command, self.route, status))
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _answer(self) -> tuple[int, Any, dict[str, str]]:
        for method, pattern, action in ROUTES:
            found = re.fullmatch(pattern, self.route)
            if found and self.command in method.split("|"):
                answer = getattr(self, action)(**found.groupdict())
                return answer if isinstance(answer, tuple) else (200, answer, {})
        raise Refused(404, f"no route {self.command} {self.route}")

    def _user(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not token:
            return None
        if scheme != "Bearer" or token not in self.server.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.server.tokens[token][0]

    def _repo(self, repo: str, write: bool = False) -> Repo:
        """A repository that the user may see, and write to."""
        user, found = self._user(), self.server.repos.get(repo)
        if found is None or (found.private and user != repo.split("/")[0]):
            raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user != repo.split("/")[0]:
            raise Refused(403 if user else 401, "You have no write access to this repository")
        return found

    def _tree(self, repo: str, revision: str) -> tuple[Repo, str, dict[str, File]]:
        found = self._repo(repo)
        tree = found.tree(revision)
        if tree is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, *tree

    def whoami(self) -> Any:
        user = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def create(self) -> Any:
        asked = json.loads(self.body)
        user = self._user()
        if user is None or asked.get("organization") not in (None, user):
            raise Refused(401 if user is None else 403, "You don't have the rights to create a model there")
        name = f"{user}/{asked['name']}"
        if name in self.server.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, {}
        private = asked.get("private", asked.get("visibility") == "private")
        repo = self.server.repos[name] = Repo(bool(private))
        repo.add(
            "initial commit", {".gitattributes": small_file(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
        )
        return {"url": f"{self.server.url}/{name}", "name": name, "id": name}

    def info(self, repo: str, revision: str = "main") -> Any:
        found, sha, files = self._tree(repo, revision)
        siblings = [
            {"rfilename": path, "blobId": one.oid, "size": one.size, "lfs": one.as_json(path).get("lfs")}
            for path, one in files.items()
        ]
        name = {"id": repo, "modelId": repo, "author": repo.split("/")[0], "sha": sha, "private": found.private}
        return {**name, "disabled": False, "gated": False, "tags": [], "downloads": 0, "siblings": siblings}

    def tree(self, repo: str, revision: str, path: str | None = None) -> Any:
        _, _, files = self._tree(repo, revision)
        return [one.as_json(name) for name, one in files.items() if name.startswith((path or "").strip("/"))]

    def paths_info(self, repo: str, revision: str) -> Any:
        _, _, files = self._tree(repo, revision)
        sent = self.body.decode()
        asked = json.loads(sent)["paths"] if sent.startswith("{") else parse_qs(sent)["paths"]
        return [files[name].as_json(name) for name in asked if name in files]

    def refs(self, repo: str) -> Any:
        sha = self._repo(repo).commits[-1][0]
        return {
            "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": sha}],
            "tags": [],
            "converts": [],
        }

    def validate_yaml(self) -> Any:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def preupload(self, repo: str, revision: str) -> Any:
        tree = self._repo(repo, write=True).commits[-1][2]
        found = []
        for one in json.loads(self.body)["files"]:
            large = one["path"].endswith(LFS_SUFFIXES) or one["size"] > LFS_ABOVE_BYTES
            there = tree.get(one["path"])
            oid = {"oid": there.sha256 or there.oid} if there else {}
            found.append(
                {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}
            )
        return {"files": found, "commitOid": self.server.repos[repo].commits[-1][0]}

    def lfs_batch(self, repo: str) -> Any:
        trees = [files for _, _, files in self._repo(repo, write=True).commits]
        there = {one.sha256 for files in trees for one in files.values()}
        found = []
        for one in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}}
            actions["verify"] = {"href": f"{self.server.url}/{repo}.git/info/lfs/verify", "header": {}}
            found.append({**one, **({} if one["oid"] in there else {"actions": actions})})
        return {"transfer": "basic", "objects": found}

    def lfs_put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content is not what was announced")
        self.server.blobs[oid] = self.body
        return b""

    def lfs_verify(self, repo: str) -> Any:
        asked = json.loads(self.body)
        if len(self.server.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "not uploaded")
        return {}

    def xet_token(self, repo: str, kind: str, revision: str) -> Any:
        self._repo(repo, write=kind == "write")
        if self.server.xet_folder is None:
            raise Refused(404, "no Xet here")
        url, until = f"local://{self.server.xet_folder}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
        return 200, {"casUrl": url, "accessToken": "xet", "exp": until}, headers

    def commit(self, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        head, _, tree = found.commits[-1]
        items = [json.loads(line) for line in self.body.splitlines()]
        header, files = items[0]["value"], dict(tree)
        if header.get("parentCommit", head) != head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for item in items[1:]:
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = small_file(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                files[value["path"]] = self._large(value)
            else:
                gone = [one for one in files if one == value["path"] or one.startswith(f"{value['path']}/")]
                for one in gone:
                    del files[one]
        sha = found.add(header["summary"], files)
        return {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.server.url}/{repo}/commit/{sha}",
            "hookOutput": "",
        }

    def _large(self, value: dict[str, Any]) -> File:
        """A large file, which must have been uploaded before it is committed."""
        sha256 = value["oid"]
        if sha256 in self.server.blobs:
            return File(sha256=sha256, size=len(self.server.blobs[sha256]))
        xet_hash = find_xet_hash(self.server.xet_folder, sha256)
        if xet_hash is None:
            raise Refused(400, f"{value['path']} was not uploaded")
        return File(sha256=sha256, size=value["size"], xet_hash=xet_hash)

    def resolve(self, repo: str, revision: str, path: str) -> Any:
        _, sha, files = self._tree(repo, revision)
        if path not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
        one = files[path]
        etag = f'"{one.sha256 or one.oid}"'
        headers = {"X-Repo-Commit": sha, "ETag": etag, "Accept-Ranges": "bytes", "Content-Disposition": "inline"}
        if one.sha256:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(one.size)}
        if one.xet_hash:
            headers |= {"X-Xet-Hash": one.xet_hash, "Content-Length": str(one.size)}
            headers["Link"] = f'<{self.server.url}/api/models/{repo}/xet-read-token/{sha}>; rel="xet-auth"'
            return 200, b"", headers
        content = self.server.blobs.get(one.sha256, one.content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, content, headers
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return 206, content[start : end + 1], headers


_REPO, _REV = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[\w.-]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/revision/{_REV}", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/{_REV}(?P<path>/.*)?", "tree"),
    ("POST", rf"/api/models/{_REPO}/paths-info/{_REV}", "paths_info"),
    ("GET", rf"/api/models/{_REPO}/refs", "refs"),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REV}", "preupload"),
    ("POST", rf"/api/models/{_REPO}/commit/{_REV}", "commit"),
    ("GET", rf"/api/models/{_REPO}/xet-(?P<kind>read|write)-token/{_REV}", "xet_token"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", "lfs_verify"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET|HEAD", rf"/{_REPO}/resolve/{_REV}/(?P<path>.+)", "resolve"),
)
