# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only file that knows AnsibleModule: argument specs, check mode, diff, errors, time limit and exit.

A module passes its argument spec and a function that observes, plans and applies. The function runs in a child process with a time limit,
so that an unreachable NFS server makes the task fail with a message instead of hanging the play.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import action, deadline, mountpoints, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, refusal_hint, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes

#: The password in an address, such as https://user:password@host.
_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@:\s]*:([^/\s]+)@")

#: Seconds. select(2) takes no longer time limit.
_LONGEST_TIMEOUT = 1e8

DEFAULT_STATE_DIR = "/var/lib/renderfarm-overlay"

#: Options of several modules. The doc fragments describe them.
TIMEOUT = {"type": "float", "default": 120.0}
STATE_DIR = {"type": "path", "default": DEFAULT_STATE_DIR}
READY_MARKER = {"type": "str", "default": ""}


def check_absolute(path: str, option: str) -> None:
    """Check the value of an option. Raises OverlayError if it is not an absolute path."""
    if not os.path.isabs(path):
        hint = ": give the directory that the web server serves" if "://" in path else ""
        raise OverlayError(f"{option} must be an absolute path, not {path!r}{hint}")


@dataclass
class Outcome:
    """The result of a module."""

    #: Return values of the module.
    values: dict[str, Any]
    #: The actions that were carried out, or would have been; None for a module that changes nothing.
    plan: Plan | None = None
    #: The state before and after the plan. The diff shows them if they differ.
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    #: The message of a module that fails after part of its work, which the other fields describe; empty if it succeeds.
    failure: str = ""


@dataclass(frozen=True)
class Context:
    """What the function of a module receives besides its parameters."""

    check_mode: bool
    #: Call it whenever the work makes progress. The work is given up after ``timeout`` seconds without a call.
    progress: deadline.Progress
    #: Seconds without progress after which the work is given up. It does not limit the total time.
    timeout: float
    #: The item being worked on, shown on timeout.
    note: deadline.Note

    def carry_out(self, plan: Plan, handlers: Handlers) -> None:
        """Apply the actions of a plan in order and report progress after each; in check mode apply none.

        Raises UnknownActionError before anything is changed, also in check mode, if an action has no handler.
        """
        action.check_handled(plan, handlers)
        if self.check_mode:
            return
        for step in plan:
            action.apply(step, handlers)
            self.progress()


Work = Callable[[dict[str, Any], Context], Outcome]


def run(
    argument_spec: dict[str, Any],
    work: Work,
    required_if: Sequence[tuple[Any, ...]] | None = None,
    required_one_of: Sequence[tuple[str, ...]] | None = None,
    mutually_exclusive: Sequence[tuple[str, ...]] | None = None,
    required_together: Sequence[tuple[str, ...]] | None = None,
) -> None:
    """Run a module: parse its arguments, run ``work`` in a child process with the time limit, and exit with its outcome."""
    try:
        module = AnsibleModule(
            argument_spec={**argument_spec, "timeout": TIMEOUT},
            required_if=required_if,
            required_one_of=required_one_of,
            mutually_exclusive=mutually_exclusive,
            required_together=required_together,
            supports_check_mode=True,
        )
    except UnicodeEncodeError as error:
        # AnsibleModule logs its arguments, and raises this for bytes that are not UTF-8. So there is no AnsibleModule to report it.
        reason = f"an option has bytes that are not UTF-8 ({error.object!r}), which Ansible cannot pass to a module: give UTF-8"
        print(json.dumps({"failed": True, "msg": reason}))  # pylint: disable=ansible-bad-function
        sys.exit(1)  # pylint: disable=ansible-bad-function
    # Such addresses are refused, and the message has no password, but Ansible returns the parameters with it.
    module.no_log_values.update(_passwords(module.params))
    timeout = module.params["timeout"]
    unusable = _unusable(module.params) or _unusable_timeout(timeout)
    if unusable:
        module.fail_json(msg=unusable)
    note = deadline.Note()

    def in_child(progress: deadline.Progress) -> Outcome:
        # Modules set modes explicitly. This applies to files made by the programs that they run.
        os.umask(0o022)
        return work(module.params, Context(module.check_mode, progress, timeout, note))

    try:
        outcome = deadline.run(in_child, timeout)
    except deadline.TimeLimitError as error:
        module.fail_json(msg=given_up(error, note.read()))
    except deadline.WorkError as error:
        module.fail_json(msg="unexpected error, which is a bug in the module: report it", exception=str(error))
    except OverlayError as error:
        module.fail_json(msg=explain(error))
    except OSError as error:
        module.fail_json(msg=explain(error), errno=error.errno)
    for warning in outcome.warnings:
        module.warn(warning)
    result: dict[str, Any] = {"changed": bool(outcome.plan), **outcome.values}
    if outcome.plan is not None:
        result["actions"] = [str(step) for step in outcome.plan]
    if outcome.before != outcome.after:
        result["diff"] = {"before": dict(outcome.before), "after": dict(outcome.after)}
    if outcome.failure:
        module.fail_json(msg=outcome.failure, **result)
    module.exit_json(**result)


def given_up(
    error: deadline.TimeLimitError, place: str = "", progress: deadline.Progress = deadline.no_progress
) -> str:
    """Return the message for work that made no progress: it names the mounts of file servers that do not answer.

    ``place`` is the item that was worked on, if that is known. Finding the mounts takes up to a second; it calls ``progress``.
    """
    at = f" at {place}" if place else ""
    silent = mountpoints.silent(progress)
    if silent:
        reason = f"No answer from the file server of {silent}: check the server, then run the task again"
    else:
        reason = "A file server that does not answer is the usual reason; for slower work raise 'timeout'"
    return f"gave up: {error}{at}. {reason}"


def _unusable_timeout(timeout: float) -> str | None:
    if 0 < timeout <= _LONGEST_TIMEOUT:
        return None
    return f"timeout must be a number of seconds greater than 0, and up to {_LONGEST_TIMEOUT:g}, not {timeout:g}"


def _passwords(value: Any) -> Iterator[str]:
    """Yield the passwords in the addresses among the values of options."""
    if isinstance(value, str):
        yield from _PASSWORD.findall(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _passwords(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _passwords(part)


def _unusable(value: Any, name: str = "") -> str | None:
    """Return what is wrong with the first option in a value that cannot be a path, name or number; None if all can."""
    if isinstance(value, str):
        try:
            if b"\0" in os.fsencode(value):
                return f"option {name} has a NUL byte, which paths and names cannot have: remove it"
        except UnicodeEncodeError:
            return f"option {name} has lone surrogates, which paths and names cannot have: give UTF-8"
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"option {name} has to be a number, not {value:g}"
    if isinstance(value, Mapping):
        inner = [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
        inner += [(name, key) for key in value]
    elif isinstance(value, (list, tuple)):
        inner = [(name, part) for part in value]
    else:
        return None
    return next((found for found in (_unusable(part, label) for label, part in inner) if found), None)


def explain(error: OverlayError | OSError) -> str:
    """Return the message for an error: the path, what is wrong and, if permission was denied, what to do."""
    if isinstance(error, deadline.TimeLimitError):
        return given_up(error)
    if isinstance(error, OverlayError):
        return str(error)
    reason = error.strerror or str(error) or type(error).__name__
    name = error.filename
    # For a call on a descriptor, Python sets the file name to its number.
    if not isinstance(name, (str, bytes)):
        return reason
    path = to_bytes(name) if isinstance(name, str) else name
    hint = _hint(error, path) if isinstance(error, PermissionError) else ""
    return f"{show(path)}: {reason}{hint}"


def _hint(error: PermissionError, path: bytes) -> str:
    """Return what to do about a denied permission."""
    as_root = os.geteuid() == 0
    # The path is compared with those of mounts as it is, since looking it up could hang.
    mount = containing_mount(namespaces.own_mounts(), path) if as_root and path.startswith(b"/") else None
    return refusal_hint(as_root, error.errno == errno.EACCES, mount.fstype if mount else None)
