"""A server of files on 127.0.0.1 that counts, and misbehaves when it is told to."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class QuietServer(ThreadingHTTPServer):
    """A client that hangs up in the middle of an answer is its right, and no error to print."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell of everything but a connection that the client ended."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@dataclass
class FileServer:
    """Serves a folder with range requests, as a context manager."""

    folder: Path
    ranges: bool = True
    """Whether ranges are honoured; else whole files are sent."""
    busy_every: int = 0
    """Every n-th request is answered 503."""
    refuse: Callable[[str, int], int] = lambda _path, _number: 0
    """Path and number of the request to a status to answer instead; 0: serve, -1: hang up."""
    login: str = ""
    """USER:PASSWORD that is demanded."""
    moved: dict[str, str] = field(default_factory=dict)
    """Path to where it redirects."""
    etag: bool = True
    sent: int = 0
    """Bytes of bodies."""
    log: list[tuple[str, str, int]] = field(default_factory=list)
    """Path with query, range, status of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> FileServer:
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        with self._lock:
            self.sent, self.log, self.headers = 0, [], []

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool = True) -> None:
        wanted = request.headers.get("Range", "")
        path = unquote(urlsplit(request.path).path)
        with self._lock:
            number = len(self.log) + 1
            self.log.append((request.path, wanted, 0))
            self.headers.append(dict(request.headers))
        status = self.refuse(path, number)
        if self.busy_every and number % self.busy_every == 0:
            status = 503
        token = base64.b64encode(self.login.encode()).decode()
        if self.login and request.headers.get("Authorization") != f"Basic {token}":
            status = status or 401
        file = self.folder / path.lstrip("/")
        if status < 0:
            request.close_connection = True
            request.connection.close()
            return
        if not status and path in self.moved:
            self._send(request, 302, {"Location": self.moved[path]}, b"", number, body=body)
        elif status or not file.is_file():
            self._send(request, status or 404, {}, b"said by the server", number, body=body)
        else:
            self._serve(request, file, wanted, number, body=body)

    def _serve(self, request, file: Path, wanted: str, number: int, *, body: bool) -> None:
        data = file.read_bytes()
        state = file.stat()
        headers = {"Accept-Ranges": "bytes"} if self.ranges else {}
        if self.etag:
            headers["ETag"] = f'"{state.st_size:x}-{state.st_mtime_ns:x}"'
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if match is None or not self.ranges:
            self._send(request, 200, headers, data, number, body=body)
            return
        start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if start >= len(data):
            self._send(request, 416, {"Content-Range": f"bytes */{len(data)}"}, b"", number)
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(request, 206, headers, data[start : end + 1], number, body=body)

    def _send(self, request, status: int, headers, data: bytes, number: int, *, body=True) -> None:
        with self._lock:
            if number <= len(self.log):
                self.log[number - 1] = (*self.log[number - 1][:2], status)
            self.sent += len(data) if body else 0
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if body:
            try:
                request.wfile.write(data)
            except OSError:
                request.close_connection = True


@dataclass
class OwnProcess:
    """The same server in a process of its own: GDAL may hold Python's lock while it waits."""

    folder: Path

    def __enter__(self) -> OwnProcess:
        args = [sys.executable, __file__, str(self.folder)]
        self._process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def told(self) -> tuple[int, list[str]]:
        """Return the bytes sent so far, and what was asked for; and count anew."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/told") as answer:
            sent, log = json.loads(answer.read())
        return sent, log


if __name__ == "__main__":
    with FileServer(Path(sys.argv[1])) as own:
        serve = own.answer

        def answer(request: BaseHTTPRequestHandler, *, body: bool = True) -> None:
            if request.path != "/told":
                serve(request, body=body)
                return
            told = json.dumps([own.sent, [entry[0] for entry in own.log]]).encode()
            own.reset()
            own._send(request, 200, {}, told, 1)
            own.reset()

        own.answer = answer
        print(own.port, flush=True)
        threading.Event().wait()
