"""Reading files of web servers: ranges, broken connections, files that change, redirects, proxies, certificates and refusals."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import (
    copying,
    locations,
    store_files,
    web_client,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.remote_file import ChangedError, RemoteFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access
from ansible_collections.renderfarm.overlay.tests.kernel.stores import web_servers
from ansible_collections.renderfarm.overlay.tests.kernel.stores.web_servers import Faulty, Nginx, Proxy

CONTENT = random.Random(1).randbytes(3_000_000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _plain_environment(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the proxies and the credentials of this machine, and do not wait between tries."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(area))
    monkeypatch.setattr(web_client, "PAUSES", (0.0,) * 4)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    (place / "file").write_bytes(CONTENT)
    (place / "empty").write_bytes(b"")
    (place / "of nobody").write_bytes(b"x")
    (place / ".views").mkdir()
    (place / ".views" / "view.json").write_bytes(b"{}")
    (place / ".images").mkdir()
    (place / ".images" / "record.json").write_bytes(b"{}")
    (place / "a b#c?d%é").write_bytes(b"odd")
    return place


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Nginx]:
    with web_servers.nginx(
        tmp_path_factory.mktemp("nginx") / "server", served, "location /refused { return 403; }"
    ) as running:
        yield running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def read_all(address: str, offset: int = 0, access: Access = SYSTEM) -> bytes:
    with store_files.open_from(address, offset, access) as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


def bring(address: str, part: Path, **more: object) -> None:
    arguments = {"size": len(CONTENT), "digest": DIGEST, **more}
    copying.bring(address, str(part), arguments["size"], arguments["digest"])  # type: ignore[arg-type]


# ---- nginx


@pytest.mark.parametrize("offset", [0, 1, 1_000_000, len(CONTENT) - 1, len(CONTENT)])
@pytest.mark.parametrize("scheme", ["http", "https", "path"])
def test_a_file_is_read_from_an_offset(server: Nginx, served: Path, scheme: str, offset: int) -> None:
    location = str(served / "file") if scheme == "path" else f"{getattr(server, scheme)}/file"
    assert read_all(location, offset, Access(str(server.ca_path))) == CONTENT[offset:]
    if scheme != "path" and offset:
        # Only what is asked for is sent.
        expected = 206 if offset < len(CONTENT) else 416
        assert server.has_logged(f"GET /file {expected} bytes={offset}-")


@pytest.mark.parametrize("scheme", ["http", "path"])
def test_a_small_file_is_read_up_to_its_largest_length(server: Nginx, served: Path, scheme: str) -> None:
    store = str(served) if scheme == "path" else server.http
    assert store_files.read(f"{store}/file", len(CONTENT)) == CONTENT
    assert store_files.read(f"{store}/empty", 10) == b""
    with pytest.raises(OverlayError, match="file has more than 999 bytes"):
        store_files.read(f"{store}/file", 999)
    assert store_files.size(f"{store}/file") == len(CONTENT)
    assert store_files.exists(f"{store}/file")
    assert not store_files.exists(f"{store}/missing")
    with pytest.raises(FileNotFoundError):
        store_files.read(f"{store}/missing", 10)


def test_names_with_special_characters_are_found(server: Nginx) -> None:
    assert read_all(locations.joined(server.http, "a b#c?d%é")) == b"odd"


def test_the_example_hides_what_is_being_written_and_shows_the_image_store(server: Nginx) -> None:
    assert store_files.exists(f"{server.http}/.images/record.json")
    assert not store_files.exists(f"{server.http}/.views/view.json")


def test_a_certificate_of_an_unknown_authority_is_refused(server: Nginx) -> None:
    with pytest.raises(OverlayError, match=r"the certificate of the server is not accepted: .*'ca_path'"):
        read_all(f"{server.https}/file")
    named = server.https.replace("127.0.0.1", "localhost")
    with pytest.raises(OverlayError, match="is not accepted: Hostname mismatch"):
        read_all(f"{named}/file", 0, Access(str(server.ca_path)))


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b"x", "no certificates in PEM format")])
def test_an_unusable_file_of_authorities_is_named(server: Nginx, area: Path, content: bytes | None, words: str) -> None:
    path = area / "authorities"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OverlayError, match=f"ca_path {path} .*{words}"):
        read_all(f"{server.https}/file", 0, Access(str(path)))


def test_a_refusal_is_not_tried_again_and_names_the_address(server: Nginx) -> None:
    assert store_files.exists(f"{server.http}/empty")
    assert server.has_logged("HEAD /empty 200 -")
    before = len(server.requests)
    with pytest.raises(
        OverlayError, match=rf"{server.http}/refused: the server refuses access \(403\): allow this host"
    ):
        read_all(f"{server.http}/refused")
    assert server.has_logged("GET /refused 403 -")
    assert len(server.requests) == before + 1


# ---- proxies


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with web_servers.proxy(tmp_path_factory.mktemp("proxy") / "server") as running:
        yield running


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_in_between_is_used(
    server: Nginx, between: Proxy, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", between.address)
    address, access = f"{getattr(server, scheme)}/file", Access(str(server.ca_path))
    before = len(between.connections)
    assert read_all(address, 1_000_000, access) == CONTENT[1_000_000:]
    assert len(between.connections) == before + 1
    assert server.has_logged("GET /file 206 bytes=1000000-")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert read_all(address, 0, access) == CONTENT
    assert len(between.connections) == before + 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_other_credentials_is_named(
    server: Nginx, between: Proxy, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", between.address.replace("secret", "hidden"))
    with pytest.raises(
        OverlayError,
        match=r"through the proxy http://127.*proxy in its environment variable|Tunnel connection failed: 401",
    ) as raised:
        read_all(f"{getattr(server, scheme)}/file", 0, Access(str(server.ca_path)))
    assert "hidden" not in str(raised.value)


def test_a_proxy_that_does_not_run_is_named_without_its_password(
    server: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"127.0.0.1:{web_servers.free_port()}"
    monkeypatch.setenv("http_proxy", f"http://reader:hidden@{gone}")
    with pytest.raises(
        HostError, match=rf"cannot be reached through the proxy http://{gone}: Connection refused"
    ) as raised:
        read_all(f"{server.http}/file")
    assert "hidden" not in str(raised.value)


# ---- a server that fails


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_broken_connection_continues(stack: ExitStack, has_ranges: bool) -> None:
    faults = stack.enter_context(
        web_servers.faulty(
            Faulty({"/file": CONTENT}, has_ranges, cuts=[1_000_000, 0, 500_000 + (0 if has_ranges else 10**6)])
        )
    )
    assert read_all(faults.address("/file")) == CONTENT
    assert [asked for _method, _path, asked in faults.requests] == [
        None,
        *("bytes=1000000-", "bytes=1000000-", "bytes=1500000-"),
    ]
    assert faults.received[-1]["if-range"] == '"one"'


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_broken_connection_of_unknown_length_continues(stack: ExitStack, area: Path, has_ranges: bool) -> None:
    faults = Faulty({"/file": CONTENT}, has_ranges, is_chunked=True, cuts=[1_000_000, 0, 2_000_000])
    stack.enter_context(web_servers.faulty(faults))
    assert read_all(faults.address("/file")) == CONTENT
    # Without chunks, only the record tells that something is missing.
    faults.is_chunked, faults.headers, faults.cuts = False, {"Content-Length": None}, [1_000_000, 0, 2_000_000]
    bring(faults.address("/file"), area / "part")
    assert (area / "part").read_bytes() == CONTENT


def test_a_connection_that_breaks_again_and_again_is_given_up(stack: ExitStack) -> None:
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": CONTENT}, cuts=[1000, *[0] * 20])))
    with pytest.raises(
        HostError, match=r"/file: the connection broke 5 times at byte 1000 \(it ended after 1000 of 3000000"
    ):
        read_all(faults.address("/file"))
    assert len(faults.requests) == 5


def test_a_connection_that_makes_progress_is_not_given_up(stack: ExitStack) -> None:
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": CONTENT}, cuts=[100_000] * 29)))
    assert read_all(faults.address("/file")) == CONTENT
    assert len(faults.requests) == 30


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_that_is_replaced_meanwhile_is_not_mixed(stack: ExitStack, has_ranges: bool) -> None:
    faults = Faulty({"/file": CONTENT}, has_ranges, cuts=[1000], etags=['"one"', '"two"'])
    stack.enter_context(web_servers.faulty(faults))
    with pytest.raises(ChangedError, match="was replaced while it was read"):
        read_all(faults.address("/file"))


def test_a_copy_of_a_file_that_is_replaced_meanwhile_starts_again(stack: ExitStack, area: Path) -> None:
    faults = Faulty({"/file": b"x" * len(CONTENT)}, cuts=[1000], etags=['"old"'])

    def replace(number: int) -> None:
        if number == 2:
            faults.files["/file"] = CONTENT

    faults.meanwhile = replace
    stack.enter_context(web_servers.faulty(faults))
    bring(faults.address("/file"), area / "part")
    assert (area / "part").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_failure_that_may_pass_is_tried_again(stack: ExitStack, status: int) -> None:
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": CONTENT}, statuses=[status, status])))
    assert read_all(faults.address("/file")) == CONTENT
    assert len(faults.requests) == 3


def test_a_failure_that_does_not_pass_is_named(stack: ExitStack) -> None:
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": CONTENT}, statuses=[503] * 10)))
    with pytest.raises(
        HostError, match=r"/file: the server failed \(503 Service Unavailable\) 5 times: look at its log"
    ):
        read_all(faults.address("/file"))


def test_a_server_that_does_not_run_is_named() -> None:
    address = f"http://127.0.0.1:{web_servers.free_port()}/file"
    with pytest.raises(
        HostError, match=rf"{address}: the server cannot be reached: Connection refused; check the address"
    ):
        read_all(address)


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_client, "_SOCKET_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(HostError, match=r"cannot be reached: no answer within 0.1 seconds"):
            read_all(address)


def test_no_more_is_read_than_the_server_says(stack: ExitStack) -> None:
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": CONTENT}, excess=b"x" * 100_000)))
    assert read_all(faults.address("/file")) == CONTENT


@pytest.mark.parametrize("says", ["nothing", "its length"])
def test_no_more_is_copied_than_is_recorded(stack: ExitStack, area: Path, says: str) -> None:
    faults = Faulty({"/file": CONTENT * 3}, headers={"Content-Length": None} if says == "nothing" else {})
    stack.enter_context(web_servers.faulty(faults))
    part = area / "part"
    if says == "nothing":
        bring(faults.address("/file"), part)
        assert part.read_bytes() == CONTENT
    else:
        with pytest.raises(
            OverlayError, match="/file has 9000000 bytes where 3000000 are recorded: nothing was installed"
        ):
            bring(faults.address("/file"), part)
        assert part.stat().st_size == 0


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_what_is_compressed_on_the_way_is_refused(stack: ExitStack, encoding: str) -> None:
    faults = Faulty({"/file": CONTENT, "/1.dump.gz": CONTENT}, headers={"Content-Encoding": encoding})
    stack.enter_context(web_servers.faulty(faults))
    with pytest.raises(OverlayError, match=rf"/file: the server or a proxy compresses it on the way \({encoding}\)"):
        read_all(faults.address("/file"))
    assert faults.received[-1]["accept-encoding"] == "identity"
    if encoding == "gzip":
        # Some servers name the format of a file that is stored compressed.
        assert read_all(faults.address("/1.dump.gz")) == CONTENT


def test_nginx_that_compresses_sends_the_file_as_it_is(tmp_path: Path, served: Path) -> None:
    conf = web_servers.EXAMPLE.read_text()
    assert "gzip off;" in conf
    more = (
        "location /compressed/ { gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; alias " + f"{served}/; }}"
    )
    with web_servers.nginx(tmp_path / "nginx", served, more) as compressing:
        assert read_all(f"{compressing.http}/compressed/file") == CONTENT


@pytest.mark.parametrize("range_sent", ["bytes 5-2999999/3000000", "bytes x", "bytes 0-1/2"])
def test_another_range_than_was_asked_for_is_refused(stack: ExitStack, range_sent: str) -> None:
    faults = Faulty({"/file": CONTENT}, headers={"Content-Range": range_sent})
    stack.enter_context(web_servers.faulty(faults))
    with pytest.raises(OverlayError, match="/file: the server sends another range than was asked for"):
        read_all(faults.address("/file"), 1000)


# ---- redirects


def redirects(to: str, **more: object) -> Faulty:
    return Faulty({"/file": CONTENT}, statuses=[302], headers={"Location": to}, **more)  # type: ignore[arg-type]


def test_a_redirect_is_followed_with_the_range(server: Nginx, stack: ExitStack) -> None:
    faults = stack.enter_context(web_servers.faulty(redirects(f"{server.http}/file")))
    assert read_all(faults.address("/file"), 1000) == CONTENT[1000:]
    assert server.has_logged("GET /file 206 bytes=1000-")
    faults.statuses = [302]
    assert store_files.size(faults.address("/file")) == len(CONTENT)
    assert server.has_logged("HEAD /file 200 -")


@pytest.mark.parametrize("to", ["file:///etc/shadow", "ftp://127.0.0.1/file", "gopher://127.0.0.1/"])
def test_a_redirect_to_something_else_than_a_web_server_is_refused(stack: ExitStack, to: str) -> None:
    faults = stack.enter_context(web_servers.faulty(redirects(to)))
    with pytest.raises(OverlayError, match="which is no http"):
        read_all(faults.address("/file"))


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, served: Path, server: Nginx) -> None:
    more = f"location /moved {{ return 302 {server.http}/file; }}"
    with web_servers.nginx(tmp_path / "nginx", served, more) as moving:
        with pytest.raises(OverlayError, match=rf"redirects to {server.http}/file, which is not encrypted"):
            read_all(f"{moving.https}/moved", 0, Access(str(moving.ca_path)))
        assert read_all(f"{moving.http}/moved") == CONTENT


def test_a_circle_of_redirects_ends(stack: ExitStack) -> None:
    faults = redirects("/file")
    faults.statuses = [302] * 20
    stack.enter_context(web_servers.faulty(faults))
    with pytest.raises(OverlayError, match="redirects more than 5 times"):
        read_all(faults.address("/file"))


# ---- credentials


def test_credentials_of_the_host_are_sent_over_https_only(
    tmp_path: Path, served: Path, area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passwords").write_text("reader:{PLAIN}secret\n")
    more = f'auth_basic "stores"; auth_basic_user_file {tmp_path}/passwords;'
    with web_servers.nginx(tmp_path / "nginx", served, more) as guarded:
        access = Access(str(guarded.ca_path))
        with pytest.raises(OverlayError, match=r"credentials are missing or wrong \(401\).*\.netrc"):
            read_all(f"{guarded.https}/file", 0, access)
        netrc = area / ".netrc"
        netrc.write_text("machine 127.0.0.1 login reader password secret\n")
        netrc.chmod(0o600)
        assert read_all(f"{guarded.https}/file", 0, access) == CONTENT
        with pytest.raises(OverlayError, match="credentials of servers are only sent over https"):
            read_all(f"{guarded.http}/file")
        netrc.rename(area / "elsewhere")
        monkeypatch.setenv("NETRC", str(area / "elsewhere"))
        assert read_all(f"{guarded.https}/file", 0, access) == CONTENT


# ---- copies


@pytest.mark.parametrize("left", [None, 0, 1, 1_500_000, len(CONTENT), len(CONTENT) + 1])
def test_a_copy_continues_where_it_ended(server: Nginx, area: Path, left: int | None) -> None:
    part = area / "part"
    if left is not None:
        part.write_bytes((CONTENT + b"x")[:left])
    assert store_files.exists(f"{server.http}/empty")
    bring(f"{server.http}/file", part)
    assert part.read_bytes() == CONTENT
    if left == len(CONTENT):
        assert server.has_logged("HEAD /empty 200 -")
    elif left and left < len(CONTENT):
        assert server.has_logged(f"GET /file 206 bytes={left}-")


def test_a_damaged_begin_is_copied_again(server: Nginx, area: Path) -> None:
    (area / "part").write_bytes(b"x" * 1000)
    bring(f"{server.http}/file", area / "part")
    assert (area / "part").read_bytes() == CONTENT


def test_a_wrong_digest_leaves_nothing(server: Nginx, area: Path) -> None:
    with pytest.raises(OverlayError, match="/file does not have the recorded digest sha256:0000"):
        bring(f"{server.http}/file", area / "part", digest="sha256:" + "0" * 64)
    assert not (area / "part").exists()


def test_a_copy_that_breaks_off_is_continued_by_the_next_run(stack: ExitStack, area: Path) -> None:
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": CONTENT}, cuts=[2_000_000, *[0] * 4])))
    with pytest.raises(HostError):
        bring(faults.address("/file"), area / "part")
    assert (area / "part").stat().st_size == 2_000_000
    bring(faults.address("/file"), area / "part")
    assert faults.requests[-1] == ("GET", "/file", "bytes=2000000-")
    assert (area / "part").read_bytes() == CONTENT


def test_other_addresses_than_those_of_web_servers_are_never_opened() -> None:
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http:relative"):
        with pytest.raises(OverlayError):
            store_files.open_from(address)
    with pytest.raises(OverlayError):
        RemoteFile("file:///etc/passwd", 0, SYSTEM)


def test_a_killed_copy_is_continued(tmp_path: Path, served: Path, area: Path) -> None:
    part = area / "part"
    with web_servers.nginx(tmp_path / "nginx", served, "limit_rate 1m;") as slow:
        child = os.fork()
        if child == 0:
            try:
                bring(f"{slow.http}/file", part)
            finally:
                os._exit(0)
        limit = time.monotonic() + 20
        while not part.exists() or part.stat().st_size < 100_000:
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        there = part.stat().st_size
        assert there < len(CONTENT)
        bring(f"{slow.http}/file", part)
        assert part.read_bytes() == CONTENT
        assert slow.has_logged(f"GET /file 206 bytes={there}-")


def test_whatever_a_server_answers_gives_the_content_or_an_error_for_users(stack: ExitStack, area: Path) -> None:
    chosen = random.Random(7)
    values = (
        "",
        "-1",
        "x",
        "9" * 30,
        "1 000",
        "bytes */5",
        "bytes 5-4/3",
        "bytes 0-9/*",
        "\x00",
        "é",
        "gzip",
        "chunked",
        '"',
        "0",
    )
    names = (
        "Content-Length",
        "Content-Range",
        "ETag",
        "Last-Modified",
        "Content-Encoding",
        "Transfer-Encoding",
        "Location",
    )
    content = CONTENT[:5000]
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    faults = stack.enter_context(web_servers.faulty(Faulty({"/file": content})))
    whole = 0
    for _turn in range(400):
        faults.headers = {chosen.choice(names): chosen.choice(values) for _header in range(chosen.randrange(3))}
        faults.statuses = [chosen.choice((None, None, 100, 204, 206, 226, 300, 302, 304, 399, 416, 418, 505, 599, 999))]
        faults.cuts = [chosen.choice((None, 0, 100, 4999))]
        (area / "part").write_bytes(content[: chosen.choice((0, 0, 10, 5000))])
        try:
            copying.bring(faults.address("/file"), str(area / "part"), len(content), digest)
        except (OverlayError, OSError):
            continue
        assert (area / "part").read_bytes() == content
        whole += 1
    assert 50 < whole < 390
