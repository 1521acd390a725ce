"""Locations of stores: which addresses can be used, and what messages show of them."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/net/manifests", "/net/manifests"),
        ("/net/manifests//", "/net/manifests"),
        ("/", "/"),
        ("/net/a:b@c?d#e", "/net/a:b@c?d#e"),
        ("https://host", "https://host"),
        ("https://host/", "https://host"),
        ("HTTPS://Host:8443/a%20b/", "HTTPS://Host:8443/a%20b"),
        ("http://[::1]:8080/stores", "http://[::1]:8080/stores"),
        ("http://10.0.0.1/.images/0123456789abcdef.erofs", "http://10.0.0.1/.images/0123456789abcdef.erofs"),
    ],
)
def test_a_usable_location_loses_only_its_last_slash(location: str, expected: str) -> None:
    assert locations.check(location, "store") == expected


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", "must be an absolute path or an http(s) address"),
        ("net/manifests", "must be an absolute path or an http(s) address"),
        ("//host/path".lstrip("/"), "must be an absolute path or an http(s) address"),
        ("file:///etc/passwd", "has the scheme file"),
        ("ftp://host/x", "has the scheme ftp"),
        ("data:text/plain,x", "has the scheme data"),
        ("httpx://host/x", "has the scheme httpx"),
        ("https:host/x", "has no host"),
        ("https:///x", "has no host"),
        ("https://host:port/x", "wrong port"),
        ("https://host:99999/x", "wrong port"),
        ("https://host:0/x", "wrong port"),
        ("http://[::1/x", "has no host"),
        ("https://reader:hidden@host/x", "has a user name or a password"),
        ("https://hidden@host/x", "has a user name or a password"),
        ("https://host/x?signature=hidden", "has a '?' or a '#'"),
        ("https://host/x?", "has a '?' or a '#'"),
        ("https://host/x#hidden", "has a '?' or a '#'"),
        ("https://host/a b", "has characters"),
        ("https://host/a\r\nHost: other", "has characters"),
        ("https://host/é", "has characters"),
        ("https://host/\\x", "has characters"),
        ("https://host/" + "x" * 5000, "too long"),
        ("https://host/a/../b", "has a part '.' or '..'"),
        ("https://host/./b", "has a part '.' or '..'"),
    ],
)
def test_another_location_is_refused_without_its_secrets(location: str, words: str) -> None:
    with pytest.raises(OverlayError) as raised:
        locations.check(location, "store")
    assert words in str(raised.value)
    assert str(raised.value).startswith("store ")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("store", "names", "expected"),
    [
        ("/net/store", ("usd/1.json",), "/net/store/usd/1.json"),
        ("/net/store/", ("usd", "1.json"), "/net/store/usd/1.json"),
        ("https://host/store/", ("usd/1.json",), "https://host/store/usd/1.json"),
        ("https://host", (".data", "usd/1", "x.erofs"), "https://host/.data/usd/1/x.erofs"),
        ("https://host", ("a b/c?d#e%f",), "https://host/a%20b/c%3Fd%23e%25f"),
        ("https://host", (b"caf\xe9".decode("utf-8", "surrogateescape"),), "https://host/caf%E9"),
    ],
)
def test_the_location_of_a_file_follows_from_its_path_below_the_store(
    store: str, names: tuple[str, ...], expected: str
) -> None:
    assert locations.joined(store, *names) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/net/a\nb", "/net/a\\nb"),
        ("/net/u:p@h", "/net/u:p@h"),
        ("https://reader:hidden@host:1/x", "https://host:1/x"),
        ("https://a@b:hidden@host/x", "https://host/x"),
        ("https://host/x?signature=hidden#hidden", "https://host/x"),
        ("http://[hidden", "http:..."),
        ("https://host/\ud800\udcff", "https://host/\\ud800\\udcff"),
        ("/net/\udcff", "/net/\\xff"),
    ],
)
def test_what_is_shown_has_no_secrets(location: str, expected: str) -> None:
    assert locations.shown(location) == expected
