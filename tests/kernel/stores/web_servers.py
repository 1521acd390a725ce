"""Servers of stores: nginx with the configuration of examples/, tinyproxy in between, and one that fails as it is asked to."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ansible_collections.renderfarm.overlay.tests.kernel import support

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "stores" / "nginx.conf"
HOST = "127.0.0.1"
_SECONDS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(port: int, log: Path, *argv: str | Path) -> Iterator[None]:
    """Run a server while the block runs, from when it accepts connections on."""
    with log.open("ab") as output, subprocess.Popen(argv, stdout=output, stderr=output) as server:
        try:
            limit = time.monotonic() + _SECONDS
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, port)):
                    break
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < limit, f"{argv[0]} does not answer: {log.read_text()}"
                time.sleep(0.02)
            yield
        finally:
            server.terminate()


# ---- nginx


def make_authority(place: Path) -> None:
    """Make a certificate authority, ``ca.crt``, and a certificate of it for this host, ``server.crt`` and ``server.key``."""
    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = {name: place / name for name in ("ca.crt", "ca.key", "server.crt", "server.key")}
    support.command(
        *("openssl", "req", "-x509", *elliptic, "-subj", "/CN=an authority", "-days", "1"),
        *("-addext", "keyUsage=critical,keyCertSign", "-keyout", files["ca.key"], "-out", files["ca.crt"]),
    )
    support.command(
        *("openssl", "req", "-x509", *elliptic, "-subj", "/CN=a server", "-days", "1"),
        *("-CA", files["ca.crt"], "-CAkey", files["ca.key"], "-addext", f"subjectAltName=IP:{HOST}"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", files["server.key"], "-out", files["server.crt"]),
    )


@dataclass(frozen=True)
class Nginx:
    """A running nginx, which serves one directory over http and https."""

    http: str
    https: str
    ca_path: Path
    log: Path

    @property
    def requests(self) -> list[str]:
        """The requests so far, each with its status and the range that it asked for."""
        return self.log.read_text().splitlines()

    def has_logged(self, line: str) -> bool:
        """Return whether a request is the last one in the log, which nginx writes a moment after its answer."""
        limit = time.monotonic() + _SECONDS
        while not self.requests or self.requests[-1] != line:
            if time.monotonic() > limit:
                return False
            time.sleep(0.01)
        return True


@contextlib.contextmanager
def nginx(place: Path, root: Path, more: str = "") -> Iterator[Nginx]:
    """Serve ``root`` with the configuration of examples/ while the block runs. ``more`` is added to the server."""
    place.mkdir(parents=True)
    make_authority(place)
    plain, encrypted = free_port(), free_port()
    own = {
        "listen 443 ssl;": f"listen {HOST}:{encrypted} ssl; listen {HOST}:{plain}; {more}",
        "/etc/nginx/stores.crt": str(place / "server.crt"),
        "/etc/nginx/stores.key": str(place / "server.key"),
        "/net/stores": str(root),
    }
    server = EXAMPLE.read_text()
    for given, here in own.items():
        assert given in server
        server = server.replace(given, here)
    log = place / "access.log"
    temporary = " ".join(
        f"{name}_temp_path {place}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (place / "nginx.conf").write_text(
        f"daemon off; master_process off; user root; pid {place}/pid; error_log {place}/error.log; events {{ }}\n"
        f"http {{ log_format asked '$request_method $uri $status $http_range'; access_log {log} asked; {temporary}\n"
        f"{server} }}\n"
    )
    with _running(plain, place / "output", "nginx", "-e", place / "error.log", "-c", place / "nginx.conf"):
        yield Nginx(f"http://{HOST}:{plain}", f"https://{HOST}:{encrypted}", place / "ca.crt", log)


# ---- a proxy


@dataclass(frozen=True)
class Proxy:
    """A running tinyproxy."""

    address: str
    log: Path

    @property
    def connections(self) -> list[str]:
        """The first lines of the requests so far."""
        return re.findall(r"Request \(file descriptor \d+\): (.*)", self.log.read_text())


@contextlib.contextmanager
def proxy(place: Path) -> Iterator[Proxy]:
    """Run a forward proxy while the block runs. It asks for the password ``secret`` of ``reader``."""
    place.mkdir(parents=True)
    port = free_port()
    log = place / "log"
    (place / "conf").write_text(
        f'Port {port}\nListen {HOST}\nTimeout 60\nLogFile "{log}"\nLogLevel Connect\nMaxClients 20\nAllow {HOST}\n'
        "BasicAuth reader secret\n"
    )
    with _running(port, place / "output", "tinyproxy", "-d", "-c", place / "conf"):
        yield Proxy(f"http://reader:secret@{HOST}:{port}", log)


# ---- a server that fails


@dataclass
class Faulty:
    """What a server does: the content of its files, and how it fails. Lists have one element for each request, and then nothing."""

    files: dict[str, bytes]
    has_ranges: bool = True
    #: The statuses of the first requests; None for what is right.
    statuses: list[int | None] = field(default_factory=list)
    #: After how many bytes of content the connection is closed.
    cuts: list[int | None] = field(default_factory=list)
    #: The ETags of the first requests.
    etags: list[str | None] = field(default_factory=list)
    #: Headers that are added, or replace those that are right; None leaves one out.
    headers: dict[str, str | None] = field(default_factory=dict)
    #: Whether the content is sent in chunks, without its length.
    is_chunked: bool = False
    #: Bytes that follow the content.
    excess: bytes = b""
    #: Called when a request has come, before it is answered.
    meanwhile: Callable[[int], None] = lambda _number: None
    #: Method, path and range of each request.
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    #: The headers of each request.
    received: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    def address(self, path: str = "") -> str:
        return f"http://{HOST}:{self.port}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        faults = self.server.faults
        faults.requests.append((self.command, self.path, self.headers.get("Range")))
        faults.received.append({name.lower(): value for name, value in self.headers.items()})
        faults.meanwhile(len(faults.requests))
        content = faults.files.get(self.path)
        status = (faults.statuses.pop(0) if faults.statuses else None) or (200 if content is not None else 404)
        etag = faults.etags.pop(0) if faults.etags else '"one"'
        headers: dict[str, str | None] = {"ETag": etag, "Connection": "close"}
        content = content or b""
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if status == 200 and begin and faults.has_ranges and self.headers.get("If-Range") in (None, etag):
            start = int(begin[1])
            status = 206 if start < len(content) else 416
            total = f"{start}-{len(content) - 1}" if status == 206 else "*"
            headers["Content-Range"] = f"bytes {total}/{len(content)}"
            content = content[start:]
        if faults.is_chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(content))
        headers.update(faults.headers)
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        cut = faults.cuts.pop(0) if faults.cuts else None
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                sent = content[:cut] if cut is not None else content + faults.excess
                if faults.is_chunked:
                    for start in range(0, len(sent), 10_000):
                        part = sent[start : start + 10_000]
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.write(b"" if cut is not None else b"0\r\n\r\n")
                else:
                    self.wfile.write(sent)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, faults: Faulty) -> None:
        self.faults = faults
        super().__init__((HOST, 0), _Handler)


@contextlib.contextmanager
def faulty(faults: Faulty) -> Iterator[Faulty]:
    """Run a server that fails as it is asked to, while the block runs."""
    with _Server(faults) as server:
        faults.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield faults
        finally:
            server.shutdown()
            thread.join()
