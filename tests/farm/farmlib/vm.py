"""One virtual machine: a QEMU process with its console in a file and its control on its standard streams."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farmlib import cpio, host
from farmlib.image import Kernel

# Lines of a kernel's log that no test of ours may bring about.
TROUBLE = re.compile(
    r"BUG:|Oops|kernel BUG at|Kernel panic|general protection fault|WARNING: CPU|INFO: task .* blocked|Unable to handle"
)
_ACCELERATORS: dict[str, list[str]] = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    # Without -cx16 Debian's kernels oops now and then at boot under TCG, without -la57 too.
    "tcg": ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,-cx16,-la57"],
}
_MACHINE = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"]
_PROBE = b"""#!/bin/busybox sh
echo farm-alive
/bin/busybox poweroff -f
"""


def choose_accelerator(kernel: Kernel, scratch: Path) -> str:
    """KVM where a guest really starts with it (it may be there and not work), else TCG."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    initrd = scratch / "probe.initrd"
    initrd.write_bytes(kernel.initrd.read_bytes() + cpio.archive({"init": (0o100755, _PROBE)}))
    process = host.spawn(
        [
            "qemu-system-x86_64",
            *_MACHINE,
            *_ACCELERATORS["kvm"],
            "-m",
            "256",
            "-no-reboot",
            "-serial",
            "stdio",
            "-kernel",
            str(kernel.vmlinuz),
            "-initrd",
            str(initrd),
            "-append",
            "console=ttyS0 panic=-1",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        output = b""
    finally:
        host.kill_session(process)
        initrd.unlink()
    return "kvm" if b"farm-alive" in output else "tcg"


@dataclass
class VM:
    """What is written to the disks goes when the process ends; a reboot of the guest keeps it."""

    name: str
    kernel: Kernel
    accelerator: str
    memory_mb: int
    disks: Sequence[Path]
    init: str
    farm_files: Mapping[str, tuple[int, bytes]]  # what the guest finds in /run/farm
    network: Sequence[str]
    sockets: Sequence[int] = ()
    run_dir: Path = host.BUILD / "run"
    log: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.log = host.BUILD / "logs" / f"{self.name}.console"

    def start(self) -> None:
        initrd = self.run_dir / f"{self.name}.initrd"
        files = {"farm": (0o040755, b"")} | {f"farm/{name}": entry for name, entry in self.farm_files.items()}
        initrd.write_bytes(self.kernel.initrd.read_bytes() + cpio.archive(files))
        self.log.unlink(missing_ok=True)
        argv = [
            "qemu-system-x86_64",
            "-name",
            f"farm-{self.name}",
            *_MACHINE,
            *_ACCELERATORS[self.accelerator],
            "-smp",
            "1",
            "-m",
            str(self.memory_mb),
            "-kernel",
            str(self.kernel.vmlinuz),
            "-initrd",
            str(initrd),
            "-append",
            f"console=ttyS0 quiet loglevel=5 panic=10 oops=panic net.ifnames=0 init={self.init}",
            "-chardev",
            f"file,id=console,path={_comma(self.log)}",
            "-serial",
            "chardev:console",
            "-qmp",
            "stdio",
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]
        for disk in self.disks:
            argv += ["-drive", f"file={_comma(disk)},if=virtio,format=raw,snapshot=on,cache=unsafe"]
        with open(host.BUILD / "logs" / f"{self.name}.qemu", "wb") as errors:
            self._process = host.spawn(
                [*argv, *self.network],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=tuple(self.sockets),
                cwd=self.run_dir,
                env={**os.environ, "TMPDIR": str(self.run_dir)},
            )
        self._answer({"QMP"})
        self.control("qmp_capabilities")

    def control(self, command: str, **arguments: Any) -> Any:
        """Give QEMU a command (its QMP) and return its answer."""
        process = self._alive()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer({"return", "error"})
        if "error" in answer:
            raise host.FarmError(f"{self.name}: QEMU refused {command}: {answer['error']['desc']}")
        return answer["return"]

    def _answer(self, kinds: set[str], timeout: float = 60) -> dict[str, Any]:
        """QEMU's next message of one of these kinds; events in between are passed over."""
        process = self._alive()
        assert process.stdout is not None
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not select.select([process.stdout], [], [], 1)[0]:
                continue
            line = process.stdout.readline()
            if not line:
                self._alive(grace=2)
                break
            answer: dict[str, Any] = json.loads(line)
            if kinds & answer.keys():
                return answer
        raise host.FarmError(f"{self.name}: QEMU does not answer")

    def _alive(self, grace: float = 0) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise host.FarmError(f"{self.name} is not started")
        try:
            code = self._process.wait(grace) if grace else self._process.poll()
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            text = (host.BUILD / "logs" / f"{self.name}.qemu").read_text(encoding="utf-8", errors="replace")
            said = " | ".join(text.strip().splitlines()[-4:])
            raise host.FarmError(f"{self.name}: QEMU ended ({code}): {said}")
        return self._process

    def check(self) -> None:
        """Fail where the process has ended or the kernel has panicked."""
        self._alive()
        if "Kernel panic" in self.console():
            raise host.FarmError(f"{self.name}: the kernel panicked; see {host.shown(self.log)}")

    def reset(self) -> None:
        """As if the power had gone and come back."""
        self.control("system_reset")

    def console(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def trouble(self) -> list[str]:
        return [line for line in self.console().splitlines() if TROUBLE.search(line)]

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            host.kill_session(process)


def _comma(path: Path) -> str:
    """QEMU's options are separated by commas, and a comma in a value is written twice."""
    return str(path).replace(",", ",,")
