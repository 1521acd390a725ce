"""Start node_exporter and Prometheus on free ports of the loopback interface, and ask them. They end with the program."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
#: Seconds until a server must have started, and until it must have answered.
PATIENCE = 30.0
#: How often another port is tried, when another program took the free one meanwhile.
ATTEMPTS = 3
_POLL = 0.1

# Without the proxy of the environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(Exception):
    """A server does not start, does not answer, or reports an error."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    address: str

    def get(self, path: str, **query: str) -> str:
        """Return what the server answers. Raises ServerError if it does not, or reports an error."""
        url = f"http://{self.address}{path}{f'?{urllib.parse.urlencode(query)}' if query else ''}"
        try:
            with _OPENER.open(url, timeout=PATIENCE) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            raise ServerError(f"{self.name}: {query or path}: {error}: {error.read().decode()[:400]}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.name}: {path}: {error}") from None

    def api(self, path: str, **query: str) -> Any:
        """Return the data of an answer of Prometheus' API. Raises ServerError if it reports an error or a warning."""
        answer = json.loads(self.get(f"/api/v1/{path}", **query))
        if answer["status"] != "success" or answer.get("warnings"):
            raise ServerError(f"{self.name}: {path} {query}: {answer}")
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values that a query finds now."""
        found = self.api("query", query=expression)
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]


@contextlib.contextmanager
def started(name: str, log: Path, ready: str, command: Callable[[str], Sequence[str | Path]]) -> Iterator[Server]:
    """Start a server and end it when the block ends. The kernel ends it if this program is killed.

    ``command`` makes the command from the address to listen on. ``ready`` is a path that the server answers when it has started. Raises
    ServerError with the end of its output if it does not start.
    """
    for attempt in range(1, ATTEMPTS + 1):
        address = f"{LOOPBACK}:{_free_port()}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command(address)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            server = Server(name, address)
            if _has_started(process, server, ready):
                yield server
                return
        finally:
            _end(process)
        text = log.read_text(errors="replace")
        if attempt == ATTEMPTS or "address already in use" not in text:
            raise ServerError(f"{name} does not start: {text[-800:].rstrip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _has_started(process: subprocess.Popen[bytes], server: Server, ready: str) -> bool:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        # Another program that took the port would answer too.
        with contextlib.suppress(ServerError):
            server.get(ready)
            return process.poll() is None
        time.sleep(_POLL)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(what: str, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds. Raises ServerError naming ``what`` if it does not in so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ServerError(f"waited {seconds:g} seconds for {what}")
        time.sleep(_POLL)
