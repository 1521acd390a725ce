"""Run a farm: start a server and its render nodes, control them over ssh, and stop them when the block ends.

with Farm() as farm:
    farm.nodes["new"].ssh("mount -t nfs server:/srv/software /mnt")
"""

from __future__ import annotations

import io
import shlex
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from farmlib import host, image, software
from farmlib.vm import VM, choose_accelerator

BUSYBOX_INIT = "/usr/lib/render-farm/init"
SYSTEMD = "/lib/systemd/systemd"

#: A script that drops all unused inodes, directory entries and pages from memory.
DROP_CACHES = "for again in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done"

SOFTWARE = "/srv/software"
MANIFESTS = "/srv/manifests"

#: Seconds within which a machine boots, on emulated processors of a busy host.
BOOT_SECONDS = 600

#: Seconds of the server's lease while calls of a slow node are counted.
LONG_LEASE = 300


@dataclass(frozen=True)
class Spec:
    name: str
    role: str
    address: str
    kernel: str
    init: str
    memory_mb: int = 1024


SERVER = Spec("server", "server", "10.77.0.1", "6.12", BUSYBOX_INIT)
NODES = (
    # One kernel without data-only layers and one with them; one guest with busybox init and one with systemd.
    Spec("old", "node", "10.77.0.11", "6.1", BUSYBOX_INIT, 1536),
    Spec("new", "node", "10.77.0.12", "6.12", SYSTEMD, 1536),
)
NEWEST = Spec("newest", "node", "10.77.0.13", image.NEWEST, BUSYBOX_INIT, 1536)


class Machine:
    def __init__(self, spec: Spec, vm: VM, ssh_config: Path) -> None:
        self.spec = spec
        self.vm = vm
        self._ssh_config = ssh_config
        self._master: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> str:
        return self.spec.address

    def ssh(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 120,
        check: bool = True,
        stdin: bytes | str = b"",
    ) -> subprocess.CompletedProcess[str]:
        """Run a script (str, for sh) or one command (its argv) as root, and return its output and errors as text.

        Raises CommandFailed with the output in its message if the command fails and `check` is true, and TimeoutExpired if it
        does not end in time. It may then continue in the guest.
        """
        script = command if isinstance(command, str) else shlex.join(command)
        argv = ["ssh", "-F", str(self._ssh_config), self.name, script]
        process = host.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, errors = process.communicate(stdin.encode() if isinstance(stdin, str) else stdin, timeout)
        except BaseException:
            host.kill_session(process)
            raise
        result = subprocess.CompletedProcess(
            argv, process.returncode, output.decode(errors="surrogateescape"), errors.decode(errors="surrogateescape")
        )
        if check and result.returncode != 0:
            raise CommandFailed(self.name, script, result)
        return result

    def output(self, command: str | Sequence[str], **options: Any) -> str:
        return self.ssh(command, **options).stdout.strip()

    def copy(self, source: Path, target: str) -> None:
        """Copy a file or a directory tree to this path of the guest."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(source, arcname=target.lstrip("/"), filter=_as_root)
        self.ssh("tar -x -C /", stdin=buffer.getvalue())

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        quoted = shlex.quote(path)
        self.ssh(f'mkdir -p "$(dirname {quoted})" && cat >{quoted} && chmod {mode:o} {quoted}', stdin=content)

    def drop_caches(self) -> None:
        self.ssh(DROP_CACHES)

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Wait until a script succeeds. Raises AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while self.ssh(condition, check=False).returncode != 0:
            assert time.monotonic() < end, f"{self.name}: not true within {seconds:.0f} s: {condition}"
            time.sleep(0.3)

    def boot_id(self) -> str:
        return self.output("cat /proc/sys/kernel/random/boot_id")

    def reboot(self, timeout: float = BOOT_SECONDS) -> None:
        """Reboot the machine in an orderly way, and wait until ssh answers. Raises FarmError on timeout."""
        before = self.boot_id()
        self.ssh(
            "(sleep 0.2; [ -d /run/systemd/system ] && exec systemctl reboot || exec busybox reboot) "
            ">/dev/null 2>&1 </dev/null &"
        )
        self._wait_for_new_boot(before, timeout)

    def crash(self, timeout: float = BOOT_SECONDS) -> None:
        """Reset the machine without a shutdown, and wait until ssh answers. Raises FarmError on timeout."""
        before = self.boot_id()
        self.vm.reset()
        self._wait_for_new_boot(before, timeout)

    def _wait_for_new_boot(self, before: str, timeout: float) -> None:
        self.disconnect()
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.wait_ready(max(1.0, end - time.monotonic()))
            try:
                if self.boot_id() != before:
                    return
            except (CommandFailed, subprocess.TimeoutExpired):
                pass
            self.disconnect()
            time.sleep(0.5)
        raise host.FarmError(f"{self.name} did not reboot within {timeout:.0f} s; see {host.shown(self.vm.log)}")

    def wait_ready(self, timeout: float = BOOT_SECONDS) -> None:
        """Wait until ssh answers, and keep the connection for all later commands. Raises FarmError on timeout."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.vm.check()
            try:
                result = self.ssh("true", check=False, timeout=max(1.0, min(20.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                continue
            if result.returncode == 0:
                self._connect()
                return
            time.sleep(0.3)
        raise host.FarmError(f"{self.name} does not answer after {timeout:.0f} s; see {host.shown(self.vm.log)}")

    def _connect(self) -> None:
        # A handshake costs a second of an emulated processor, so one connection serves all commands, Ansible's too.
        # It is a child of this process; ControlPersist would leave a process behind.
        if self._master is not None and self._master.poll() is None:
            return
        control = self.vm.run_dir / f"{self.name}.ssh"
        control.unlink(missing_ok=True)
        if (
            len(str(control)) > 85
        ):  # the limit of a socket's path is 108 bytes, and ssh appends a suffix while it creates the socket
            return
        self._master = host.spawn(
            ["ssh", "-F", str(self._ssh_config), "-M", "-N", self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 30
        while not control.exists() and self._master.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    def disconnect(self) -> None:
        if self._master is not None:
            self._master.send_signal(signal.SIGKILL)
            self._master.wait()
            self._master = None
            (self.vm.run_dir / f"{self.name}.ssh").unlink(missing_ok=True)

    def latency(self, milliseconds: float) -> None:
        """Delay the packets that this machine sends on the farm's network; 0 removes the delay."""
        if milliseconds:
            self.ssh(f"modprobe sch_netem; tc qdisc replace dev farm0 root netem delay {milliseconds}ms limit 10000")
        else:
            self.ssh("tc qdisc delete dev farm0 root 2>/dev/null || true")

    def trouble(self) -> list[str]:
        """Return the oopses, warnings and hung tasks that the kernel has reported since its start."""
        return self.vm.trouble()


class Server(Machine):
    """Control the NFS server as a studio's software administrator does."""

    def add_release(self, path: str, files: Mapping[str, str] | None = None, *, copy_of: str | None = None) -> None:
        """Publish a release at `path` below the software root, with these files or as a copy of another release."""
        target = shlex.quote(f"{SOFTWARE}/{path}")
        if copy_of is not None:
            source = shlex.quote(f"{SOFTWARE}/{copy_of}")
            self.ssh(f"mkdir -p $(dirname {target}) && cp -a {source} {target}", timeout=300)
        for name, content in (files or {}).items():
            self.write(f"{SOFTWARE}/{path}/{name}", content)
        self.ssh(f"touch {target}/{software.READY_MARKER}")

    def delete_release(self, path: str) -> None:
        self.ssh(["rm", "-rf", f"{SOFTWARE}/{path}"], timeout=300)

    def export_nested(self, path: str) -> None:
        """Mount a tmpfs below the software root and export it like the root."""
        target = shlex.quote(f"{SOFTWARE}/{path}")
        self.ssh(
            f"mkdir -p {target} && mount -t tmpfs -o mode=755 nested {target} && "
            f"exportfs -o ro,root_squash,no_subtree_check,fsid=77 10.77.0.0/24:{target}"
        )

    def unexport_nested(self, path: str) -> None:
        target = shlex.quote(f"{SOFTWARE}/{path}")
        # nfsd keeps files open for a while after their last use, so umount may have to wait.
        self.ssh(
            f"exportfs -u 10.77.0.0/24:{target}; exportfs -f; "
            f"for second in $(seq 30); do umount {target} 2>/dev/null && break; sleep 1; done; "
            f"rmdir {target}"
        )

    def end_delegations(self, node: Machine) -> None:
        """Have a node return all its delegations. Raises AssertionError if it still has one after a minute.

        A client returns a delegation that it has not used for a while by itself. Such calls have nothing to do with the work that
        a test counts, so a test that expects no call at all begins without delegations.
        """
        node.drop_caches()
        self.wait_for(
            "for client in /proc/fs/nfsd/clients/*; do "
            f"if grep -qs '^address: \"{node.address}:' $client/info && grep -s 'type: deleg' $client/states; "
            "then exit 1; fi; done"
        )

    @contextmanager
    def long_lease(self, nodes: Iterable[Machine]) -> Iterator[None]:
        """Let nodes keep delegations that they do not use for minutes. `nodes` are all that use the server: it is restarted.

        With the farm's lease a slow node returns delegations between two starts of software, or during one, and opens files again.
        """
        nodes = list(nodes)
        self._restart(nodes, str(LONG_LEASE))
        try:
            yield
        finally:
            self._restart(nodes)

    def _restart(self, nodes: Sequence[Machine], lease: str = "") -> None:
        self.restart_nfsd(lease=lease)
        # A client makes a new session, and learns the lease, when it mounts.
        place = "/mnt/lease"
        for node in nodes:
            node.ssh(
                f"mkdir -p {place}; mount -t nfs -o vers=4.2 server:{SOFTWARE} {place}; umount {place}; rmdir {place}"
            )

    def restart_nfsd(self, meanwhile: str = "true", lease: str = "") -> None:
        """Restart the NFS service, and run a command while it is stopped. An empty lease is the farm's own."""
        self.ssh(f"nfs=/usr/lib/render-farm/nfs; $nfs stop; sleep 1; {meanwhile}; $nfs start {lease}")

    @contextmanager
    def nfsd_stopped(self) -> Iterator[None]:
        """Stop the NFS service. The machine itself still answers."""
        self.ssh("/usr/lib/render-farm/nfs stop")
        try:
            yield
        finally:
            self.ssh("/usr/lib/render-farm/nfs start")

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Cut the server off from the farm's network, as if its cable were pulled."""
        self.ssh("ip link set farm0 down")
        try:
            yield
        finally:
            self.ssh("ip link set farm0 up")


def on_all(machines: Sequence[Machine], work: Callable[[Machine], Any]) -> dict[str, Any]:
    """Run `work` on several machines at once and return the results by name. Raise the first failure when all have ended."""
    results: dict[str, Any] = {}
    failures: list[BaseException] = []

    def one(machine: Machine) -> None:
        try:
            results[machine.name] = work(machine)
        except BaseException as error:
            failures.append(error)

    # Daemon threads, so that an interrupt does not wait for them. Their children end with them.
    threads = [threading.Thread(target=one, args=(machine,), daemon=True) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(1)
    if failures:
        raise failures[0]
    return results


class CommandFailed(subprocess.CalledProcessError):
    def __init__(self, machine: str, script: str, result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(result.returncode, script, result.stdout, result.stderr)
        self.machine = machine

    def __str__(self) -> str:
        said = (self.stderr or self.stdout or "").strip()[-2000:]
        return f"{self.machine}: exit {self.returncode} from: {self.cmd[:300]}\n{said}"


class Farm:
    """Run all machines. Entering the block builds missing images and starts them; leaving it always stops them."""

    running: ClassVar[Farm | None] = None

    server: Server
    nodes: dict[str, Machine]

    def __init__(self, accelerator: str = "auto", newest: bool = False) -> None:
        self.accelerator = accelerator
        self.newest = newest
        self.boot_seconds: dict[str, float] = {}
        self.hosts_file = host.BUILD / "hosts.yml"
        self.ssh_config = host.BUILD / "ssh_config"
        self._stack = ExitStack()

    @property
    def machines(self) -> list[Machine]:
        return [self.server, *self.nodes.values()]

    @property
    def view_nodes(self) -> list[Machine]:
        """Return the render nodes whose kernels have data-only layers. All tests run on these."""
        return [node for node in self.nodes.values() if node.name != "old"]

    def __enter__(self) -> Farm:
        host.require_tools()
        with ExitStack() as stack:
            stack.enter_context(host.only_one())
            root, disk = image.build(self.newest), software.build()
            run_dir = host.BUILD / "run"
            host.remove_tree(run_dir)
            run_dir.mkdir()
            stack.callback(host.remove_tree, run_dir)
            (host.BUILD / "logs").mkdir(exist_ok=True)
            self._start(stack, root, disk, run_dir)
            self._stack = stack.pop_all()
        Farm.running = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Farm.running = None
        self._stack.__exit__(kind, error, trace)

    def _start(self, stack: ExitStack, root: image.Image, disk: Path, run_dir: Path) -> None:
        if self.accelerator == "auto":
            self.accelerator = choose_accelerator(root.kernels["6.12"], run_dir)
        host.say(f"starting the farm ({self.accelerator})")
        keys = _keys(host.BUILD / "keys")
        nodes = [*NODES, NEWEST] if self.newest else NODES
        specs = [SERVER, *nodes]
        ports = _free_ports(len(specs))
        self._write_ssh_files(specs, ports, keys)
        hosts = "127.0.0.1 localhost\n" + "".join(f"{spec.address} {spec.name}\n" for spec in specs)
        # The network cards of the nodes reach that of the server through sockets that no other process can open.
        pairs = [socket.socketpair() for _node in nodes]
        machines: list[Machine] = []
        with ExitStack() as sockets:
            for pair in pairs:
                for end in pair:
                    sockets.callback(end.close)
            for number, (spec, port) in enumerate(zip(specs, ports)):
                ends = [pair[0] for pair in pairs] if spec.role == "server" else [pairs[number - 1][1]]
                network, macs = _network(number, spec, port, [end.fileno() for end in ends])
                identity = f"name={spec.name}\nrole={spec.role}\naddress={spec.address}\n{macs}"
                vm = VM(
                    name=spec.name,
                    kernel=root.kernels[spec.kernel],
                    accelerator=self.accelerator,
                    memory_mb=spec.memory_mb,
                    init=spec.init,
                    network=network,
                    sockets=[end.fileno() for end in ends],
                    disks=[root.root, disk] if spec.role == "server" else [root.root],
                    farm_files={
                        "machine": (0o100644, identity.encode()),
                        "hosts": (0o100644, hosts.encode()),
                        "host_key": (0o100600, keys["host"].read_bytes()),
                        "authorized_keys": (0o100600, keys["login"].with_suffix(".pub").read_bytes()),
                    },
                )
                kind = Server if spec.role == "server" else Machine
                machines.append(kind(spec, vm, self.ssh_config))
                stack.callback(vm.stop)
                stack.callback(machines[-1].disconnect)
                vm.start()
        began = time.monotonic()
        for machine in machines:
            machine.wait_ready()
            self.boot_seconds[machine.name] = round(time.monotonic() - began, 1)
            host.say(f"{machine.name} answers after {self.boot_seconds[machine.name]} s")
        assert isinstance(machines[0], Server)
        self.server = machines[0]
        self.nodes = {machine.name: machine for machine in machines[1:]}

    def _write_ssh_files(self, specs: Sequence[Spec], ports: Sequence[int], keys: Mapping[str, Path]) -> None:
        known = host.BUILD / "known_hosts"
        host_key = keys["host"].with_suffix(".pub").read_text(encoding="ascii").split()[:2]
        known.write_text("".join(f"{spec.name} {' '.join(host_key)}\n" for spec in specs), encoding="ascii")
        common = (
            f'  HostName 127.0.0.1\n  User root\n  IdentityFile "{keys["login"]}"\n  IdentitiesOnly yes\n'
            f'  UserKnownHostsFile "{known}"\n  StrictHostKeyChecking yes\n  CheckHostIP no\n  BatchMode yes\n'
            f'  ControlPath "{host.BUILD / "run"}/%n.ssh"\n  ControlMaster no\n  ConnectTimeout 15\n'
            "  ConnectionAttempts 1\n  LogLevel ERROR\n  Compression no\n  GSSAPIAuthentication no\n"
        )
        self.ssh_config.write_text(
            "".join(
                f"Host {spec.name}\n  HostKeyAlias {spec.name}\n  Port {port}\n{common}"
                for spec, port in zip(specs, ports)
            ),
            encoding="utf-8",
        )
        options = shlex.quote(str(self.ssh_config)).replace("'", "''")
        self.hosts_file.write_text(
            "all:\n  vars:\n"
            f"    ansible_ssh_args: '-F {options}'\n"
            "    ansible_ssh_pipelining: true\n"
            "    ansible_python_interpreter: /usr/bin/python3\n"
            "  children:\n    nfs_server:\n      hosts:\n        server:\n"
            "    render_nodes:\n      hosts:\n" + "".join(f"        {spec.name}:\n" for spec in specs[1:]),
            encoding="utf-8",
        )


def _network(number: int, spec: Spec, port: int, sockets: Sequence[int]) -> tuple[list[str], str]:
    login_mac, farm_mac = f"52:54:00:77:00:{number:02x}", f"52:54:00:77:01:{number:02x}"
    argv = [
        # restrict: the guest can reach nothing through it; only the port on loopback reaches the guest.
        "-netdev",
        f"user,id=login,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device",
        f"virtio-net-pci,netdev=login,mac={login_mac}",
    ]
    if spec.role == "server":
        argv += ["-netdev", "hubport,id=farm,hubid=0"]
        for place, descriptor in enumerate(sockets):
            argv += [
                "-netdev",
                f"socket,id=node{place},fd={descriptor}",
                "-netdev",
                f"hubport,id=port{place},hubid=0,netdev=node{place}",
            ]
    else:
        argv += ["-netdev", f"socket,id=farm,fd={sockets[0]}"]
    argv += ["-device", f"virtio-net-pci,netdev=farm,mac={farm_mac}"]
    return argv, f"login_mac={login_mac}\nfarm_mac={farm_mac}\n"


def _keys(directory: Path) -> dict[str, Path]:
    """Return the login key and the host key of the guests. Create them once."""
    directory.mkdir(mode=0o700, exist_ok=True)
    keys = {kind: directory / kind for kind in ("login", "host")}
    for kind, path in keys.items():
        if not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"farm-{kind}", "-f", str(path)])
    return keys


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            found.append(listener.getsockname()[1])
        return found


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if member.name.endswith("__pycache__"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
