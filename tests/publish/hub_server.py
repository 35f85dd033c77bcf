"""A small hub on loopback for the real client: repositories, branches, large files and faults.

What it answers follows the client's own code (huggingface_hub 2.4): create, look, pre-upload, LFS
with and without parts, commit, branch, pull request, list and download. Xet isn't spoken, so
clients set HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

ANNA, READER, BOB = ("hf_" + letter * 34 for letter in "arb")  # tokens; READER is Anna's too
LARGE = "*.safetensors"
BEGUN = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    writers: set[str] = field(default_factory=set)

    def add(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        history = self.branches.setdefault(branch, [])
        seed = f"{title}{sorted(files)}{len(history)}{branch}".encode() + b"".join(files.values())
        commit = Commit(hashlib.sha1(seed).hexdigest(), title, files)
        history.append(commit)
        return commit

    def history(self, revision: str) -> list[Commit] | None:
        """The commits up to a branch or a commit, oldest first."""
        if revision in self.branches:
            return self.branches[revision]
        for commits in self.branches.values():
            for number, commit in enumerate(commits, start=1):
                if commit.oid == revision:
                    return commits[:number]
        return None

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"][-1].files


@dataclass
class Fault:
    """What goes wrong where, `times` times; without a status the connection breaks off."""

    pattern: str
    status: int | None
    message: str
    times: int
    after: int


@dataclass
class Hub:
    """repos: by name; tokens: whose each is, and whether it may write; sent: bytes of uploads."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    tokens: dict[str, tuple[str, bool]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    part_size: int | None = None
    is_full: bool = False
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: list[tuple[str, int]] = field(default_factory=list)
    pulls: int = 0

    def fail(
        self, pattern: str, status: int | None = None, message="", *, times=1, after=0
    ) -> None:
        """Fail requests such as "PUT /large/.*"; after: bytes of the body that are still read."""
        self.faults.append(Fault(pattern, status, message, times, after))

    def asked(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, request)) for request in self.requests)

    def put(self, name: str, files: dict[str, bytes], title="Upload", **options: Any) -> Repo:
        """Add a commit to a repository from outside; the repository is made if need be."""
        repo = self.repos.setdefault(name, Repo(writers={name.split("/")[0]}, **options))
        before = repo.branches["main"][-1].files if repo.branches else {}
        repo.add("main", title, {**before, **files})
        return repo


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = parse_qs(url.query)
        request = f"{self.command} {unquote(url.path)}"
        self.hub.requests.append(request)
        for fault in self.hub.faults:
            if fault.times and re.match(fault.pattern, request):
                fault.times -= 1
                if fault.status is None:
                    self.rfile.read(fault.after)
                    self.connection.close()
                    self.close_connection = True
                    return
                self._body()
                return self._error(fault.status, fault.message)
        body = self._body()
        try:
            if "Authorization" in self.headers:
                self._user()
            self._route(body)
        except Refused as refused:
            self._error(refused.status, str(refused), refused.code)

    def _route(self, body: bytes) -> None:
        match self.parts:
            case ["api", "validate-yaml"]:
                self._validate(json.loads(body)["content"])
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", owner, name, *rest]:
                self._of_repo(f"{owner}/{name}", rest, body)
            case [_, _, "info", "lfs", "objects", "batch"]:
                self._batch(json.loads(body))
            case ["large", oid, *rest]:
                self._large(oid, rest, body)
            case [owner, name, "resolve", *rest]:
                self._download(f"{owner}/{name}", rest)
            case _:
                raise Refused(404, f"no such address {self.path}")

    def _of_repo(self, name: str, rest: list[str], body: bytes) -> None:
        repo = self._readable(name)
        match rest:
            case [] | ["revision", _]:
                commit = self._history(repo, rest[-1] if rest else "main")[-1]
                siblings = [{"rfilename": path} for path in commit.files]
                known = {"id": name, "sha": commit.oid, "private": repo.private}
                self._json({**known, "tags": [], "siblings": siblings})
            case ["paths-info", revision]:
                asked = parse_qs(body.decode())["paths"]
                history = self._history(repo, revision)
                self._json([_file(history, path) for path in asked if path in history[-1].files])
            case ["tree", revision, *_]:
                history = self._history(repo, revision)
                self._json([_file(history, path) for path in history[-1].files])
            case ["preupload", revision]:
                self._may_write(repo, name, pull="create_pr" in self.query)
                now = self._history(repo, revision)[-1].files
                files = []
                for file in json.loads(body)["files"]:
                    large, content = fnmatch(file["path"], LARGE), now.get(file["path"])
                    oid = None if content is None else (_sha256 if large else _git)(content)
                    mode = "lfs" if large else "regular"
                    files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
                    files[-1]["oid"] = oid
                self._json({"files": files})
            case ["commit", revision]:
                self._commit(repo, name, revision, body)
            case ["branch", branch]:
                self._may_write(repo, name)
                if branch in repo.branches:
                    raise Refused(409, "Reference already exists")
                repo.branches[branch] = list(repo.branches["main"])
                self._json({})
            case _:
                raise Refused(404, f"no such address {self.path}")

    def _create(self, asked: dict[str, Any]) -> None:
        user, may_write = self._user()
        name = f"{asked['organization']}/{asked['name']}"
        if not may_write or asked["organization"] != user:
            raise Refused(403, f"You don't have the rights to create a model under {name}")
        if name in self.hub.repos:
            raise Refused(409, "You already created this model repo")
        repo = self.hub.repos[name] = Repo(asked.get("visibility") == "private", writers={user})
        repo.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": f"{self.hub.url}/{name}"})

    def _validate(self, card: str) -> None:
        if not card.startswith("---\n"):
            self._json({"warnings": [{"message": "empty or missing yaml metadata"}], "errors": []})
        elif "license: bad" in card:
            self._json({"errors": [{"message": '"license" must be one of them'}]}, 400)
        else:
            self._json({"warnings": [], "errors": []})

    def _commit(self, repo: Repo, name: str, revision: str, body: bytes) -> None:
        pull = "create_pr" in self.query
        self._may_write(repo, name, pull=pull)
        header, *lines = [json.loads(line) for line in body.splitlines()]
        now = self._history(repo, revision)[-1]
        if header["value"].get("parentCommit") not in (None, now.oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(now.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in self.hub.large:
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                raise Refused(400, f"{line['key']} isn't known, or wasn't uploaded: {value}")
        done = {"commitUrl": "", "pullRequestUrl": None}
        if pull:
            self.hub.pulls += 1
            revision = f"refs/pr/{self.hub.pulls}"
            repo.branches[revision] = list(repo.branches["main"])
            done["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{self.hub.pulls}"
        commit = repo.add(revision, header["value"]["summary"], files)
        done["commitUrl"] = f"{self.hub.url}/{name}/commit/{commit.oid}"
        self._json({**done, "commitOid": commit.oid})

    def _batch(self, asked: dict[str, Any]) -> None:
        name = "/".join(self.parts[:2]).removesuffix(".git")
        self._may_write(self._readable(name), name, pull="ref" not in asked)
        objects = []
        for file in asked["objects"]:
            oid, size = file["oid"], file["size"]
            address = f"{self.hub.url}/large/{oid}"
            action: dict[str, Any] = {"oid": oid, "size": size}
            if self.hub.is_full:
                action["error"] = {"code": 422, "message": "You have no storage left"}
            elif oid not in self.hub.large:
                header = {}
                if self.hub.part_size is not None:
                    count = -(-size // self.hub.part_size)
                    header = {str(n): f"{address}/{n}" for n in range(1, count + 1)}
                    header["chunk_size"] = str(self.hub.part_size)
                action["actions"] = {"upload": {"href": address, "header": header}}
            objects.append(action)
        self._json({"transfer": "basic", "objects": objects})

    def _large(self, oid: str, rest: list[str], body: bytes) -> None:
        if self.command == "PUT":
            self.hub.sent.append((oid, len(body)))
        if rest:  # a part
            self.hub.parts.setdefault(oid, {})[int(rest[0])] = body
        elif self.command == "PUT":
            self.hub.large[oid] = body
        else:
            self.hub.large[oid] = b"".join(part for _, part in sorted(self.hub.parts[oid].items()))
        whole = self.hub.large.get(oid)
        if whole is not None and _sha256(whole) != oid:
            del self.hub.large[oid]
            raise Refused(400, "the content isn't what its name says")
        self._json({}, headers={"ETag": _sha256(body)})

    def _download(self, name: str, rest: list[str]) -> None:
        repo = self._readable(name)
        # a branch may have slashes, as refs/pr/1 has
        known = [n for n in range(1, len(rest)) if repo.history("/".join(rest[:n])) is not None]
        revision = "/".join(rest[: known[0]]) if known else rest[0]
        commit, path = self._history(repo, revision)[-1], "/".join(rest[len(revision.split("/")) :])
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return self._error(404, "Entry not found", "EntryNotFound", headers)
        content = commit.files[path]
        oid = (_sha256 if fnmatch(path, LARGE) else _git)(content)
        self._send(200, content, {**headers, "ETag": f'"{oid}"'})

    def _readable(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._user()[0] not in repo.writers):
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _history(self, repo: Repo, revision: str) -> list[Commit]:
        history = repo.history(revision)
        if history is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return history

    def _may_write(self, repo: Repo, name: str, *, pull: bool = False) -> None:
        user, may_write = self._user()
        if not pull and not (may_write and user in repo.writers):
            raise Refused(403, f"Forbidden: pass a token that may write to {name}")

    def _user(self) -> tuple[str, bool]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _error(
        self, status: int, message: str, code: str | None = None, headers: dict | None = None
    ) -> None:
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._json({"error": message}, status, {**told, **(headers or {})})

    def _json(self, value: Any, status: int = 200, headers: dict | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _file(history: list[Commit], path: str) -> dict[str, Any]:
    """A file of the last commit, with the commit that brought it as it is."""
    content, brought = history[-1].files[path], history[-1]
    for commit in reversed(history):
        if commit.files.get(path) != content:
            break
        brought = commit
    found = {"type": "file", "path": path, "size": len(content), "oid": _git(content)}
    if fnmatch(path, LARGE):
        found["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return {**found, "lastCommit": {"id": brought.oid, "title": brought.title, "date": BEGUN}}


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub without repositories, which answers while the body runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
