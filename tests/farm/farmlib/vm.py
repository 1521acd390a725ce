"""Run one virtual machine: a QEMU process with its console in a file and its QMP on standard input and output."""

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

# Lines of a kernel log that no test may cause.
TROUBLE = re.compile(
    r"BUG:|Oops|kernel BUG at|Kernel panic|general protection fault|WARNING: CPU|INFO: task .* blocked|Unable to handle"
)
_ACCELERATORS: dict[str, list[str]] = {
    "kvm": ["-accel", "kvm", "-cpu", "host"],
    # With cx16 or la57, Debian kernels sometimes oops at boot under TCG.
    "tcg": ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,-cx16,-la57"],
}
_MACHINE = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc"]
_PARAMETERS = "console=ttyS0 quiet loglevel=5 panic=10 oops=panic net.ifnames=0"
#: Further parameters of emulated kernels, for busy hosts. The timer is late at the check of its interrupt, and the kernel panics at boot.
#: The frequency of the TSC is measured wrong, and then the clock runs many times too slow, so it is that of the HPET. A processor can stand
#: still for more than 20 s, and the kernel reports a soft lockup, whose limit is twice the threshold.
_EMULATED = "no_timer_check tsc=unstable clocksource=hpet watchdog_thresh=60"
_PROBE = b"""#!/bin/busybox sh
echo farm-alive
/bin/busybox poweroff -f
"""


def choose_accelerator(kernel: Kernel, scratch: Path) -> str:
    """Return kvm if a guest really starts with it (/dev/kvm may exist and not work), else tcg."""
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
    """Run one guest. Its writes to disks survive a reboot and are discarded when the process ends."""

    name: str
    kernel: Kernel
    accelerator: str
    memory_mb: int
    disks: Sequence[Path]
    init: str
    farm_files: Mapping[str, tuple[int, bytes]]  # files in the guest's /run/farm
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
            f"{_PARAMETERS} {_EMULATED if self.accelerator == 'tcg' else ''} init={self.init}",
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
        """Send QEMU a QMP command and return its answer. Raises FarmError if QEMU refuses it or does not answer."""
        process = self._alive()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer({"return", "error"})
        if "error" in answer:
            raise host.FarmError(f"{self.name}: QEMU refused {command}: {answer['error']['desc']}")
        return answer["return"]

    def _answer(self, kinds: set[str], timeout: float = 60) -> dict[str, Any]:
        """Return QEMU's next message of one of these kinds, and skip events."""
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
            raise host.FarmError(f"{self.name} was not started")
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
        """Check the machine. Raises FarmError if the process has ended or the kernel has panicked."""
        self._alive()
        if "Kernel panic" in self.console():
            raise host.FarmError(f"{self.name}: the kernel panicked; see {host.shown(self.log)}")

    def reset(self) -> None:
        """Reset the machine, as after a power failure."""
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
    """Escape a path for QEMU, which separates options by commas: a comma in a value is written twice."""
    return str(path).replace(",", ",,")
