"""Messages for errors: what a module prints when its work fails."""

from __future__ import annotations

import errno
import os

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OverlayError("the mountpoint is not empty"), "the mountpoint is not empty"),
        (OSError(errno.EIO, "Input/output error", "/a/b"), "/a/b: Input/output error"),
        (OSError(errno.EIO, "Input/output error", b"/a/\xff"), "/a/\\xff: Input/output error"),
        (OSError(errno.EIO, "Input/output error", "/a/\udcff"), "/a/\\xff: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("no number"), "no number"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_is_explained_with_its_path(error: OverlayError | OSError, message: str) -> None:
    assert runner.explain(error) == message


def test_an_error_on_a_descriptor_is_explained_without_a_path() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        os.getxattr(1 << 20, b"user.x")
    assert raised.value.filename == 1 << 20
    assert runner.explain(raised.value) == "Bad file descriptor"


def test_a_denied_permission_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = PermissionError(errno.EACCES, "Permission denied", "/a")
    assert runner.explain(error) == "/a: Permission denied: run the task as root (become: true)"


@pytest.mark.parametrize(
    ("value", "passwords"),
    [
        ("https://host/path", []),
        ("/net/u:p@h", []),
        ("https://reader@host/x", []),
        ("https://reader:secret@host/x", ["secret"]),
        ("https://reader:a@b:c@host/x@y", ["a@b:c"]),
        ([{"store": "http://a:one@h/x", "image": "http://b:two@h/y"}], ["one", "two"]),
        (None, []),
    ],
)
def test_the_passwords_in_addresses_are_found(value: object, passwords: list[str]) -> None:
    assert list(runner._passwords(value)) == passwords
