"""A hub on loopback that serves repositories as the real one does, and its faults."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """A repository with its files.

    Parameters:
        files: Contents by name.
        licence: As its card tells it.
        gated: Whether its terms have to be accepted.
        told_size: Told in place of the sum of a file's bytes, for disks that are full.
    """

    files: dict[str, bytes]
    licence: str = "cc-by-4.0"
    gated: bool = False
    told_size: int | None = None


@dataclass
class LoopbackHub:
    """Repositories by name, what was asked for, and what goes wrong next.

    Parameters:
        repositories: By ``owner/name``.
        url: Its address.
        cut_after: The next answer with more than this many bytes breaks off there.
        unauthorized: Whether all is answered with 401.
        sent: Bytes that went out, by file.
        ranges: Files whose rest was asked for.
    """

    repositories: dict[str, Repository]
    url: str = ""
    cut_after: int | None = None
    unauthorized: bool = False
    sent: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)


@contextmanager
def serving(hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """Serve until the block ends."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.served.unauthorized:
            return self._refuse(401, None)
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.served.repositories.get(name)
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if parts[0] == "api":
            return self._tell(name, repository)
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        if parts[3] not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        content = repository.files.get("/".join(parts[4:]))
        if content is None:
            return self._refuse(404, "EntryNotFound", commit=True)
        return self._send_file(parts[-1], content)

    def _refuse(self, status: int, code: str | None, commit: bool = False) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _tell(self, name: str, repository: Repository) -> None:
        sizes = {file: repository.told_size or len(c) for file, c in repository.files.items()}
        told = {
            "id": name,
            "sha": COMMIT,
            "cardData": {"license": repository.licence},
            "siblings": [{"rfilename": file, "size": size} for file, size in sizes.items()],
        }
        content = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_file(self, name: str, content: bytes) -> None:
        start = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and asked != "bytes=0-":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            self.served.ranges.append(name)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = content[start:]
        cut = self.served.cut_after
        if cut is not None and len(rest) > cut:
            self.served.cut_after = None
            rest = rest[:cut]
            self.close_connection = True
        self.wfile.write(rest)
        self.served.sent[name] = self.served.sent.get(name, 0) + len(rest)
