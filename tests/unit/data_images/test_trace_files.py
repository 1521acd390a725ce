"""Traces in a store: merged under a lock, and refused by name if they are damaged."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import time
from contextlib import _GeneratorContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import trace_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, manifest_writer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import (
    TracedFile,
    trace_of,
    trace_to_text,
)

TRACE = trace_of("usd/1.0", 1, [TracedFile(b"lib/a.so", 2, 1)])


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "usd").mkdir()
    return str(tmp_path)


def test_a_release_without_a_trace_has_none(store: str) -> None:
    assert trace_files.find(store, "usd/1.0") is None
    assert trace_files.find(store, "houdini/1.0") is None


def test_traces_are_merged_in_the_store(store: str) -> None:
    assert trace_files.add(store, TRACE) == TRACE
    assert trace_files.add(store, TRACE).files == (TracedFile(b"lib/a.so", 4, 2),)
    found = trace_files.find(store, "usd/1.0")
    assert found == trace_of("usd/1.0", 2, [TracedFile(b"lib/a.so", 4, 2)])
    assert sorted(os.listdir(os.path.join(store, "usd"))) == ["1.0.trace.json"]


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match="no does not exist"):
        trace_files.find(str(tmp_path / "no"), "a")
    with pytest.raises(OverlayError, match="no does not exist"):
        trace_files.add(str(tmp_path / "no"), TRACE)


def test_a_trace_of_a_release_that_the_store_does_not_have_is_not_added(store: str) -> None:
    with pytest.raises(HostError, match=r"houdini/1\.0\.trace\.json cannot be written: No such file"):
        trace_files.add(store, trace_of("houdini/1.0", 1, TRACE.files))


@pytest.mark.parametrize(
    "text", [b"", b"{}", trace_to_text(TRACE).replace(b"lib/a.so", b"../../etc"), trace_to_text(TRACE)[:40]]
)
def test_a_damaged_trace_is_named_and_not_replaced(store: str, text: bytes) -> None:
    path = Path(store, "usd/1.0.trace.json")
    path.write_bytes(text)
    with pytest.raises(OverlayError, match=r"usd/1\.0\.trace\.json is not a trace: .*remove it"):
        trace_files.find(store, "usd/1.0")
    with pytest.raises(OverlayError, match=r"usd/1\.0\.trace\.json is not a trace: .*remove it"):
        trace_files.add(store, TRACE)
    assert path.read_bytes() == text


def test_the_trace_of_another_release_is_named(store: str) -> None:
    Path(store, "usd/2.0.trace.json").write_bytes(trace_to_text(TRACE))
    with pytest.raises(OverlayError, match=r"usd/2\.0\.trace\.json is the trace of release usd/1\.0"):
        trace_files.find(store, "usd/2.0")


@pytest.mark.parametrize("name", ["usd/1.0.trace.json", ".traces.lock"])
def test_a_link_is_not_followed(store: str, tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(trace_to_text(TRACE))
    Path(store, name).symlink_to(target)
    with pytest.raises(OverlayError, match="symbolic link"):
        trace_files.add(store, TRACE)
    assert target.read_bytes() == trace_to_text(TRACE)


def test_a_named_pipe_does_not_block(store: str) -> None:
    os.mkfifo(os.path.join(store, "usd/1.0.trace.json"))
    with pytest.raises(OverlayError, match="not a regular file"):
        trace_files.find(store, "usd/1.0")


def test_a_linked_directory_is_not_followed(store: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path(store, "linked").symlink_to("elsewhere")
    with pytest.raises(OverlayError, match="links in a store are not followed"):
        trace_files.add(store, trace_of("linked/1.0", 1, TRACE.files))


def _add_slowly(store: str, is_read: multiprocessing.synchronize.Event) -> None:
    written_aside = files.written_aside

    def slow(path: str, mode: int = 0o644) -> _GeneratorContextManager[BinaryIO, None, None]:
        is_read.set()
        time.sleep(0.5)
        return written_aside(path, mode)

    files.written_aside = slow
    trace_files.add(store, TRACE)


def test_a_run_that_adds_while_another_has_read_and_not_written_loses_nothing(store: str) -> None:
    context = multiprocessing.get_context("fork")
    is_read = context.Event()
    process = context.Process(target=_add_slowly, args=(store, is_read))
    process.start()
    assert is_read.wait(10)
    result = trace_files.add(store, TRACE)
    process.join(10)
    assert process.exitcode == 0
    assert result.starts == 2
    assert trace_files.find(store, "usd/1.0") == result


def test_many_runs_at_once_lose_nothing(store: str) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=trace_files.add, args=(store, TRACE)) for _run in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    found = trace_files.find(store, "usd/1.0")
    assert found
    assert (found.starts, found.files[0].opens) == (8, 16)


def test_a_run_that_fails_while_it_writes_leaves_the_old_trace(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_files.add(store, TRACE)
    before = Path(store, "usd/1.0.trace.json").read_bytes()

    def full(_source: str, _target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(HostError, match=r"1\.0\.trace\.json cannot be written: No space left"):
        trace_files.add(store, TRACE)
    assert Path(store, "usd/1.0.trace.json").read_bytes() == before
    assert os.listdir(os.path.join(store, "usd")) == ["1.0.trace.json"]


def test_a_lock_that_another_run_keeps_is_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_files, "LOCK_SECONDS", 0.0)
    with Path(store, trace_files.LOCK).open("wb") as held:
        files.wait_for_lock(held.fileno(), "", 0, lambda: None)
        with pytest.raises(OverlayError, match="another run has been at work on the traces in"):
            trace_files.add(store, TRACE)


def test_a_trace_is_not_taken_for_the_manifest_of_a_release(store: str) -> None:
    trace_files.add(store, TRACE)
    for name in ("1.0", "2.0.trace"):
        for suffix in (manifest_store.SUFFIX, manifest_store.RECORD_SUFFIX):
            Path(store, f"usd/{name}{suffix}").write_bytes(b"")
    found = manifest_store.find_manifests(store, Pattern.parse("{package}/{version}"))
    assert sorted(one.version for one in found) == ["1.0", "2.0.trace"]


def test_a_trace_is_removed_with_the_manifest_of_its_release(store: str) -> None:
    trace_files.add(store, TRACE)
    Path(store, "usd/1.0.dump.gz").write_bytes(b"")
    manifest_writer.remove(store, "usd/1.0")
    assert os.listdir(store) == [trace_files.LOCK]


def test_the_record_of_a_release_with_the_name_of_a_trace_is_not_removed(store: str) -> None:
    names = ["1.0.dump.gz", "1.0.json", "1.0.trace.dump.gz", "1.0.trace.json"]
    for name in names:
        Path(store, "usd", name).write_bytes(b"")
    manifest_writer.remove(store, "usd/1.0")
    assert sorted(os.listdir(os.path.join(store, "usd"))) == names[2:]
