"""Run the legs of `make test` and count their checks.

`check.py LEG... [-- ARGS...]` passes ARGS to the tool of the leg (pytest, ansible-test). Several legs run three at a time. Beside others,
integration-oldest has only the targets that run playbooks or roles, and each of these ends early.
A leg passes if it ran at least one check and every check passed. A skipped check counts as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Union

import keep_modules
import pythons
from ansible_test._internal.constants import SUPPORTED_PYTHON_VERSIONS

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / ".build"
VENV = BUILD / "venv" / "bin"
OLDEST = BUILD / "venv-oldest" / "bin"
COLLECTIONS = BUILD / "collections"
OVERLAY = COLLECTIONS / "ansible_collections" / "renderfarm" / "overlay"
HOME = BUILD / "home"
# mkcomposefs and mkfs.erofs, for the integration targets.
IMAGES = BUILD / "images" / "bin"
TIME_LIMIT = 3600  # seconds, for one command
# How many of the slowest tests of ansible-test the table names.
SLOWEST = 12

Argument = Union[str, Path]


@dataclass(frozen=True)
class Count:
    """Hold the counts of a leg. `notes` are lines for the table, such as what was left out."""

    passed: int = 0
    failed: int = 0
    notes: tuple[str, ...] = ()

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.notes + other.notes)


def failure(reason: str) -> Count:
    print(f"FAILED: {reason}", flush=True)
    return Count(failed=1, notes=(reason,))


# ---- running commands


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of every command: the tools come first on PATH, and HOME is a private directory."""
    directories = [str(VENV), *os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]
    # pyenv has shims for Pythons that do not run.
    path = os.pathsep.join(
        dict.fromkeys(directory for directory in directories if "shims" not in Path(directory).parts)
    )
    return {
        **os.environ,
        "PATH": path,
        **in_home(HOME),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_NOCOLOR": "1",
        "RUFF_CACHE_DIR": str(BUILD / "cache" / "ruff"),
        "MYPY_CACHE_DIR": str(BUILD / "cache" / "mypy"),
        **extra,
    }


def in_home(home: Path) -> dict[str, str]:
    """Return the variables that make `home` the home directory."""
    return {"HOME": str(home), "ANSIBLE_HOME": str(home / ".ansible")}


def prepare_home(home: Path) -> Path:
    """Create a home directory with only the user's pip settings, which pip needs to reach packages, and return it."""
    own = Path(os.environ.get("HOME", "/"))
    home.mkdir(parents=True, exist_ok=True)
    # The checkout may belong to another user than root.
    (home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    for name in (".config/pip", ".pip"):
        if (own / name).is_dir() and not (home / name).exists():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).symlink_to(own / name)
    return home


def run(
    *argv: Argument,
    show: bool = False,
    cwd: Path = CHECKOUT,
    env: Mapping[str, str] | None = None,
    limit: float = TIME_LIMIT,
    stamps: list[float] | None = None,
) -> tuple[int, str]:
    """Run a command and return its exit status and output. Print the output as it comes if `show` is true.

    `stamps` receives the time of each line, in seconds of the monotonic clock.
    """
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        timer = threading.Timer(limit, process.kill)
        timer.start()
        lines = []
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if stamps is not None:
                stamps.append(time.monotonic())
            if show:
                print(line, end="", flush=True)
        timer.cancel()
    return process.returncode, "".join(lines)


def step(name: str, *argv: Argument, cwd: Path = CHECKOUT, env: Mapping[str, str] | None = None) -> Count:
    """Run a command as one check. Print one line if it passes, else its whole output."""
    status, output = run(*argv, cwd=cwd, env=env)
    if status == 0:
        print(f"ok: {name}", flush=True)
        return Count(passed=1)
    print(output.rstrip().replace(f"{OVERLAY.relative_to(CHECKOUT)}/", ""))
    return failure(f"{name} (exit status {status})")


def tracked(*patterns: str) -> list[Path]:
    """Return the existing files that git tracks or would add."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    output = subprocess.run(argv, cwd=CHECKOUT, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout
    paths = [Path(name) for name in output.split("\0") if name]
    return sorted(path for path in paths if (CHECKOUT / path).is_symlink() or (CHECKOUT / path).exists())


def total(counts: Iterable[Count]) -> Count:
    return sum(counts, Count())


# ---- lint, types, docs, importer


def lint(_args: Sequence[str]) -> Count:
    counts = [
        step("ruff check", "ruff", "check", "--output-format", "concise", "."),
        step("ruff format", "ruff", "format", "--check", "."),
        step("yamllint", "yamllint", "--strict", "."),
        step("ansible-lint", "ansible-lint", "--offline", "--strict", "--nocolor"),
        step("antsibull-changelog", "antsibull-changelog", "lint"),
    ]
    scripts = [path for path in tracked() if is_shell(CHECKOUT / path)]
    if scripts:
        counts.append(step("shellcheck", "shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts))
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        counts.append(build_and_install(Path(directory)))
    return total(counts)


def is_shell(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.suffix not in ("", ".sh"):
        return False
    with path.open("rb") as file:
        first = file.readline(80)
    return re.match(rb"#!.*\b(ba|da)?sh\b", first) is not None or path == CHECKOUT / ".ci" / "run"


def build_collection(directory: Path) -> Count:
    return step("collection build", "ansible-galaxy", "collection", "build", "--output-path", directory)


def build_and_install(directory: Path) -> Count:
    """Build the tarball, install it elsewhere offline, and check that Ansible finds each module in it."""
    count = build_collection(directory)
    archives = list(directory.glob("*.tar.gz"))
    if not archives:
        return count
    install = ("ansible-galaxy", "collection", "install", "--offline", "--collections-path", directory, archives[0])
    env = environment(ANSIBLE_COLLECTIONS_PATH=str(directory))
    count += step("collection install", *install, env=env)
    modules = [f"renderfarm.overlay.{path.stem}" for path in tracked("plugins/modules/*.py")]
    if not modules:
        return count + failure("no modules in plugins/modules")
    return count + step("installed modules", "ansible-doc", *modules, env=env)


# Programs that make runs. They import files beside them by bare name.
PROGRAMS = (
    "tests/tools",
    "tests/demo",
    "tests/bench",
    "tests/farm",
    "tests/metrics",
    "tests/page",
    "tests/unionmount",
    "tests/fuzz",
)


def types(_args: Sequence[str]) -> Count:
    """Check types, with files at the paths from which they are imported."""
    plugins = tracked("plugins/*.py", "extensions/*.py")
    if not plugins:
        return failure("no files in plugins")
    count = mypy("plugins", [OVERLAY / path for path in plugins])
    programs = [path for path in tracked("tests/*.py") if str(path).startswith(PROGRAMS)]
    for program in PROGRAMS:
        files = [path for path in programs if path.is_relative_to(program)]
        version = "3.9" if program == "tests/tools" else "3.10"
        # Without a suffix, each counts as the main module, and mypy accepts one main module at a time.
        search = f"{COLLECTIONS}{os.pathsep}{CHECKOUT / program}"
        scripts = [path for path in tracked("tests") if path in (Path(program, "run"), Path(program, "clean"))]
        if files and not scripts:
            count += mypy(program, files, version, search)
        for script in scripts:
            count += mypy(str(script), [*files, script], version, search)
    tests = [OVERLAY / path for path in tracked("tests/*.py") if path not in programs]
    return count + mypy("tests", tests, "3.10") if tests else count


def mypy(name: str, files: Sequence[Path], version: str = "3.9", path: str = str(COLLECTIONS)) -> Count:
    """Check files for a Python version. Tests run on the controller, and pytest's own code needs 3.10."""
    argv = ("mypy", "--config-file", CHECKOUT / "pyproject.toml", "--python-version", version)
    return step(f"mypy {name}, {len(files)} files", *argv, *files, env=environment(MYPYPATH=path))


SPHINX_CONF = """
project = "renderfarm.overlay"
extensions = ["sphinx_antsibull_ext"]
html_theme = "sphinx_ansible_theme"
html_short_title = "renderfarm.overlay"
highlight_language = "YAML+Jinja"
nitpicky = False
"""


#: The generated pages refer to these pages of ansible-core's documentation, which are not available offline.
ANSIBLE_CORE_PAGE = """
:orphan:

.. _common_return_values:

Common return values
====================

See ansible-core's documentation of the return values that all modules have.

.. _action_plugins:

Action plugins
==============

See ansible-core's documentation of the plugins that run on the controller before a module, or in its place.
"""


def docs(_args: Sequence[str]) -> Count:
    """Lint the documentation and build HTML in .build/docs/html. Any warning fails."""
    if not tracked("plugins/modules/*.py"):
        return failure("no modules in plugins/modules")
    lint_docs = ("antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs", "self", ".")
    # Run on a copy without the farm: the tool copies the tree, and fails on symlinks to files that exist only in the guests.
    count = step("antsibull-docs lint", *lint_docs, cwd=copy_tree("docs"))
    directory = BUILD / "docs"
    shutil.rmtree(directory, ignore_errors=True)
    source = directory / "rst"
    source.mkdir(parents=True)
    source.chmod(0o755)
    make = ("antsibull-docs", "collection", "--use-current", "--squash-hierarchy", "--fail-on-error")
    count += step("antsibull-docs collection", *make, "--dest-dir", source, "renderfarm.overlay")
    # Drop the page of ansible-core's variables, and supply the page of ansible-core that others refer to.
    (source / "environment_variables.rst").unlink(missing_ok=True)
    (source / "ansible_core.rst").write_text(ANSIBLE_CORE_PAGE)
    (source / "conf.py").write_text(SPHINX_CONF)
    sphinx = ("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "-d", directory / "doctrees")
    return count + step("sphinx", *sphinx, source, directory / "html")


def importer(_args: Sequence[str]) -> Count:
    """Run the checks of Galaxy's importer. Its warnings are failures too."""
    python = BUILD / "venv-importer" / "bin" / "python"
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        count = build_collection(Path(directory))
        archives = list(Path(directory).glob("*.tar.gz"))
        if not archives:
            return count
        path = os.pathsep.join([str(python.parent), environment()["PATH"]])
        status, output = run(
            python, "-m", "galaxy_importer.main", archives[0], cwd=Path(directory), env=environment(PATH=path)
        )
    complaints = re.findall(r"^(?:WARNING|ERROR).*", output, re.M)
    if status or complaints:
        print(output.rstrip())
        return count + failure(f"galaxy-importer: {len(complaints)} warnings and errors, exit status {status}")
    print("ok: galaxy-importer", flush=True)
    return count + Count(passed=1)


# ---- pytest


def pytest(name: str, args: Sequence[str], prefix: Sequence[str] = ()) -> Count:
    """Run the tests in tests/NAME and count them from pytest's report. A skipped test counts as failed."""
    directory = Path("tests") / name
    if not any((CHECKOUT / directory).rglob("test_*.py")):
        return failure(f"no tests in {directory}")
    report = BUILD / "reports" / f"{name}.xml"
    report.unlink(missing_ok=True)
    argv: list[Argument] = [
        *prefix,
        VENV / "python",
        "-m",
        "pytest",
        "-q",
        f"--junit-xml={report}",
        *(args or [str(directory)]),
    ]
    env = environment(
        PYTHONPATH=str(COLLECTIONS),
        PYTHONPYCACHEPREFIX=str(BUILD / "cache" / "python"),
        HYPOTHESIS_STORAGE_DIRECTORY=str(BUILD / "cache" / "hypothesis"),
    )
    status, _ = run(*argv, show=True, env=env)
    if not report.exists():
        return failure(f"pytest {directory} wrote no report (exit status {status})")
    root = ET.parse(report).getroot()  # noqa: S314 - pytest wrote it a moment ago
    tests = failed = skipped = 0
    for suite in root.iter("testsuite"):
        tests += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    cases = [int(one.get("value", 0)) for one in root.iter("property") if one.get("name") == "cases"]
    notes = (f"{len(cases)} of the tests tried {sum(cases):,} random cases",) if cases else ()
    count = Count(max(tests - failed - skipped, 0), failed, notes)
    if skipped:
        print(f"FAILED: {skipped} tests were skipped")
        count += Count(failed=skipped, notes=(f"{skipped} tests were skipped",))
    if status and not count.failed:
        count += failure(f"pytest {directory} (exit status {status})")
    return count


def unit(args: Sequence[str]) -> Count:
    return pytest("unit", args)


#: Prefix of a command that runs in its own mount and PID namespaces: its mounts vanish with it, and it sees no other processes.
#: The first process must be a shell, which reaps orphans.
ALONE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child")


def kernel(args: Sequence[str]) -> Count:
    if os.geteuid() != 0:
        return failure("the kernel tests mount file systems: run make as root")
    return pytest("kernel", args, prefix=(*ALONE, "sh", "-c", '"$@"; exit "$?"', "sh"))


def eda(args: Sequence[str]) -> Count:
    """Run the rulebook in ansible-rulebook, with a deployment to this machine."""
    if os.geteuid() != 0:
        return failure("the rulebook deploys a view: run make as root")
    return pytest("eda", args, prefix=(*ALONE, "sh", "-c", '"$@"; exit "$?"', "sh"))


def awx(args: Sequence[str]) -> Count:
    """Configure AWX from examples/awx, and run its jobs in ansible-runner, with deployments to this machine."""
    if os.geteuid() != 0:
        return failure("the jobs of examples/awx deploy views: run make as root")
    return pytest("awx", args, prefix=(*ALONE, "sh", "-c", '"$@"; exit "$?"', "sh"))


def layouts(args: Sequence[str]) -> Count:
    """Deploy views of software that rez, conda, Spack and pip laid out, and compare them with what these tools say."""
    if os.geteuid() != 0:
        return failure("views of the layouts are mounted: run make as root")
    return pytest("layouts", args, prefix=(*ALONE, "sh", "-c", '"$@"; exit "$?"', "sh"))


# ---- ansible-test

# ansible-test prints these when it leaves something out, and exits 0.
LEFT_OUT = re.compile(r"^WARNING: (?:Skipping|Required program|Excluding|All targets|No targets).*", re.M)
# ansible-test downloads pip's installer for new environments. With this file in its cache, it uses ensurepip.
GET_PIP = """\
import ensurepip
import os
import runpy
import sys

kept = dict(os.environ)
ensurepip.bootstrap()  # disables pip's settings for the whole process
os.environ.clear()
os.environ.update(kept)
sys.argv = ["pip", "install", *(arg for arg in sys.argv[1:] if arg not in ("--no-setuptools", "--no-wheel"))]
runpy.run_module("pip", run_name="__main__")
"""
PIP_VERSIONS = ("23_1_2", "24_2", "25_2")  # ansible-core 2.16 and 2.17; 2.18 and 2.19; 2.20 and 2.21
# With this file, Python keeps the bytecode of the modules that Ansible sends. Compiling them again took a third of each task.
KEEP_BYTECODE = CHECKOUT / "tests" / "farm" / "guest" / "rootfs" / "etc" / "python3.11" / "sitecustomize.py"
KEEP_MODULES = CHECKOUT / "tests" / "tools" / "keep_modules.py"
INSTALL_KEEP_BYTECODE = """\
import os
import sys
import sysconfig

with open(os.path.join(sysconfig.get_path("purelib"), "sitecustomize.py"), "w") as file:
    file.write({text!r}.replace("/var/cache/farm-python", os.path.join(sys.prefix, "bytecode")))
    file.write({modules!r})

"""


def copy_tree(leg: str) -> Path:
    """Copy the collection for a leg to the path that ansible-test requires, and return that path.

    ansible-test resolves symlinks and asks git for the files, so the copy is a git repository. Programs and kernel tests are
    left out: they are no Ansible content, and lint and types check them.
    """
    copy = BUILD / "ansible-test" / leg / "ansible_collections" / "renderfarm" / "overlay"
    output = BUILD / "ansible-test" / leg / "output"
    if (copy / "tests" / "output").is_dir():
        shutil.rmtree(output, ignore_errors=True)
        (copy / "tests" / "output").rename(output)
    shutil.rmtree(copy, ignore_errors=True)
    for path in tracked():
        if any(
            path.is_relative_to(directory)
            for directory in (*PROGRAMS, "tests/kernel", "tests/eda", "tests/awx", "tests/layouts")
        ):
            continue
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / path, copy / path, follow_symlinks=False)
    if output.is_dir():
        output.rename(copy / "tests" / "output")
    subprocess.run(["git", "init", "--quiet", "."], cwd=copy, env=environment(), check=True, stderr=subprocess.DEVNULL)
    return copy


def bootstrap(leg: str) -> str:
    """Return the script that ansible-test runs in each new environment of a leg, to install pip."""
    if not leg.startswith("integration"):
        return GET_PIP
    # Only the first part of a file can have this line.
    modules = KEEP_MODULES.read_text().replace("from __future__ import annotations\n", "")
    return INSTALL_KEEP_BYTECODE.format(text=KEEP_BYTECODE.read_text(), modules=modules) + GET_PIP


def ansible_test(
    name: str, ran: str, *argv: Argument, prefix: Sequence[str] = (), tools: Path = VENV, brief: bool = False
) -> Count:
    """Run an ansible-test command and count its tests. `ran` matches the line that it prints at the start of each test, with its name.

    If `brief` is true, the integration targets end early.
    """
    # ansible-test looks for Pythons on PATH only, so append the directories of all others.
    directories = sorted({str(Path(python.path).parent) for python in pythons.find_all().values()})
    path = os.pathsep.join([str(tools), str(IMAGES), environment()["PATH"], *directories])
    # ansible-test keeps environments in its home. Two legs at a time must not share them.
    home = prepare_home(HOME / name)
    shutil.rmtree(home / keep_modules.DIRECTORY, ignore_errors=True)
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in PIP_VERSIONS:
        (cache / f"get_pip_{version}.py").write_text(bootstrap(name))
    command = (*prefix, tools / "python", tools / "ansible-test", *argv, "--color", "no")
    copy = copy_tree(name)
    if brief:
        (copy / BRIEF).touch()
    stamps: list[float] = []
    status, output = run(*command, show=True, cwd=copy, env=environment(PATH=path, **in_home(home)), stamps=stamps)
    began = len(re.findall(ran, output, re.M))
    listed = re.search(
        r"^FATAL: The \d+ \w+ test\(s\) listed below .* failed.*\n((?:(?!FATAL)[^\n]+\n)+)", output, re.M
    )
    names = listed.group(1).splitlines() if listed else [f"exit status {status}"] * (status != 0)
    slowest = slow_tests(ran, output, stamps)
    count = Count(max(began - len(names), 0), len(names), (*(f"{name} failed: {it}" for it in names), *slowest))
    for line in sorted(set(LEFT_OUT.findall(output))):
        count += failure(f"{name}: {line}")
    if not began:
        count += failure(f"{name}: ansible-test ran nothing")
    return count


def slow_tests(ran: str, output: str, stamps: Sequence[float]) -> tuple[str, ...]:
    """Return a note of the tests that took longest, given the output of ansible-test and the times of its lines."""
    lines = output.splitlines(keepends=True)
    began = [(at, found.group(1)) for line, at in zip(lines, stamps) if (found := re.match(ran, line))]
    ends = [at for at, _name in began[1:]] + list(stamps[-1:])
    took = sorted(((end - at, name) for (at, name), end in zip(began, ends)), reverse=True)[:SLOWEST]
    return ("slowest: " + ", ".join(f"{name} {seconds:.0f} s" for seconds, name in took),) if took else ()


def version_of(tools: Path) -> str:
    """Return the minor version of an environment's Python, such as 3.13. Raises SystemExit if it does not run."""
    python = pythons.run_probe(str(tools / "python"), allow_venv=True)
    if python is None:
        raise SystemExit(f"{tools / 'python'} does not run: remove it with make clean, and try again")
    return python.name


def sanity(args: Sequence[str]) -> Count:
    """Run the sanity tests, and those for managed nodes with every installed Python."""
    found = pythons.find_all()
    known = [minor for minor in pythons.MANAGED if ".".join(map(str, minor)) in SUPPORTED_PYTHON_VERSIONS]
    targets = []
    for minor in known:
        if minor in found and found[minor].has_venv:
            targets += ["--target-python", found[minor].name]
    absent = [f"{major}.{minor}" for major, minor in known if (major, minor) not in found]
    controller = ["--controller", f"origin:python=venv/{version_of(VENV)}"]
    count = ansible_test("sanity", r'^Running sanity test "([^"]+)', "sanity", *controller, *targets, *args)
    if absent:
        count += Count(notes=(f"imports not checked on Python {', '.join(absent)}: not installed",))
    return count


def targets_with_playbooks() -> list[str]:
    """Return the integration targets that run playbooks or roles. The others call single modules, which hardly depend on ansible-core."""
    directories = sorted((CHECKOUT / "tests" / "integration" / "targets").iterdir())
    return [one.name for one in directories if (one / "runme.sh").exists() or one.name.startswith("role_")]


#: If this file exists, the integration targets leave out what depends little on the version of ansible-core.
BRIEF = Path("tests", "integration", "targets", "setup_overlay", "brief")
#: The same, with a private /etc and private records in /run.
APART = (
    *(*ALONE, "sh", "-euc"),
    """
    notes=/run/renderfarm-overlay
    mkdir -p $notes
    mount -t tmpfs tmpfs $notes
    mkdir $notes/upper $notes/work
    mount -t overlay -o lowerdir=/etc,upperdir=$notes/upper,workdir=$notes/work etc /etc
    mount -t tmpfs -o mode=755 tmpfs $notes
    "$@"
    """,
    "sh",
)


def run_targets(leg: str, tools: Path, args: Sequence[str], brief: bool = False) -> Count:
    if not any((CHECKOUT / "tests" / "integration" / "targets").glob("*/tasks/main.*")):
        return failure("no targets in tests/integration/targets")
    if os.geteuid() != 0:
        return failure("the integration tests mount file systems: run make as root")
    argv = ("integration", "--venv", "--python", version_of(tools), "--allow-destructive", "--continue-on-error")
    ran = r"^Running (\S+) integration test (?:role|script)"
    return ansible_test(leg, ran, *argv, *args, prefix=APART, tools=tools, brief=brief)


def integration(args: Sequence[str]) -> Count:
    """Run the integration targets with the controller's ansible-core."""
    return run_targets("integration", VENV, args)


def integration_oldest(args: Sequence[str]) -> Count:
    """Run the integration targets with the oldest supported ansible-core."""
    reason = no_oldest()
    return failure(reason) if reason else run_targets("integration-oldest", OLDEST, args)


def brief_oldest(args: Sequence[str]) -> Count:
    """Run the beginning of each target that runs playbooks or roles with the oldest supported ansible-core, or the targets in `args`."""
    reason = no_oldest()
    if reason:
        return failure(reason)
    return run_targets("integration-oldest", OLDEST, args or targets_with_playbooks(), brief=True)


def no_oldest() -> str:
    """Return why the oldest ansible-core is not tested separately, or an empty string if it is."""
    if not (OLDEST / "ansible-test").exists():
        return "integration-oldest not run: no Python 3.10 to 3.12 on this machine"
    return ""


# ---- all of it

Leg = Callable[[Sequence[str]], Count]
LEGS: dict[str, Leg] = {
    "lint": lint,
    "types": types,
    "unit": unit,
    "kernel": kernel,
    "integration": integration,
    "integration-oldest": integration_oldest,
    "sanity": sanity,
    "docs": docs,
    "importer": importer,
    "eda": eda,
    "awx": awx,
    "layouts": layouts,
}


#: Legs that are shorter beside others.
BESIDE = {**LEGS, "integration-oldest": brief_oldest}
#: The long legs start first, the longest one before all others.
LONG = ("kernel", "integration", "integration-oldest", "sanity")
#: The tests of a leg wait for some of their time, so three legs keep two processors busy.
AT_A_TIME = 3
#: The kernel tests run one after the other, so all else gives way to them.
GIVING_WAY = ("nice", "-n", "5")


@dataclass(frozen=True)
class Result:
    """Hold the counts of a leg, its duration, and the processor time of its processes, in seconds."""

    count: Count
    seconds: float
    processor: float


def processor_time() -> float:
    """Return the processor time of this process and of its children that have ended, in seconds."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run_leg(name: str, args: Sequence[str], legs: Mapping[str, Leg] = LEGS) -> Result:
    print(f"\n==== {name}", flush=True)
    started, before = time.monotonic(), processor_time()
    count = legs[name](args)
    if not count.passed and not count.failed:
        count = replace(count, failed=1, notes=(*count.notes, "ran no check"))
    return Result(count, time.monotonic() - started, processor_time() - before)


def run_beside(name: str, args: Sequence[str], show: bool) -> Result:
    """Run a leg in a separate process. Print its output as it comes if `show` is true, else at the end."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        report = Path(directory) / "count.json"
        argv: list[Argument] = [sys.executable, __file__, "--report", report, name, *(["--", *args] if args else [])]
        status, output = run(*(GIVING_WAY if name != "kernel" else ()), *argv, show=show, env=os.environ)
        if not show:
            print(output, end="", flush=True)
        try:
            found = json.loads(report.read_text())
        except (OSError, ValueError):
            count = failure(f"{name} ended without a count (exit status {status})")
            return Result(count, time.monotonic() - started, 0.0)
    counted = found["count"]
    count = Count(counted["passed"], counted["failed"], tuple(counted["notes"]))
    return Result(count, found["seconds"], found["processor"])


def run_legs(names: Sequence[str], args: Sequence[str]) -> dict[str, Result]:
    """Run legs, three at a time, and return their results in the given order."""
    if len(names) == 1:
        return {names[0]: run_leg(names[0], args)}
    order = sorted(names, key=lambda name: LONG.index(name) if name in LONG else len(LONG))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        running = {name: pool.submit(run_beside, name, args, name == order[0]) for name in order}
        return {name: running[name].result() for name in names}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="write the counts of a single leg to this file as JSON")
    parser.add_argument("legs", nargs="+", choices=LEGS, metavar="LEG")
    at = list(argv).index("--") if "--" in argv else len(argv)
    options, args = parser.parse_args(argv[:at]), argv[at + 1 :]
    prepare_home(HOME)
    if options.report:
        [name] = options.legs
        options.report.write_text(json.dumps(asdict(run_leg(name, args, BESIDE))))
        return 0
    # If it is the only leg, integration-oldest fails and says why.
    reason = no_oldest() if len(options.legs) > 1 else ""
    results = run_legs([name for name in options.legs if not reason or name != "integration-oldest"], args)
    print(f"\n{'leg':<18} {'passed':>7} {'failed':>7} {'seconds':>8} {'processor':>10}")
    for name, result in results.items():
        times = f"{result.seconds:>8.1f} {result.processor:>10.1f}"
        print(f"{name:<18} {result.count.passed:>7} {result.count.failed:>7} {times}")
        for note in result.count.notes:
            print(f"    {note}")
    if len(results) < len(options.legs):
        print(reason)
    everything = total(result.count for result in results.values())
    print(f"\n{everything.passed} passed, {everything.failed} failed")
    return 1 if everything.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
