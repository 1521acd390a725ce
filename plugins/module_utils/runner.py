# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one file that knows AnsibleModule: argument specs, check mode, diff, errors, time limit and exit.

A module gives its argument spec and a function that observes, plans and applies. The function runs in a child process with a
time limit, so that a dead NFS server ends in a message and not in a play that hangs.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import action, deadline, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, refusal_hint, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes

#: Seconds; the kernel takes no longer time limits.
_LONGEST_TIMEOUT = 1e8

DEFAULT_STATE_DIR = "/var/lib/renderfarm-overlay"

#: Options that several modules have, so that they are the same everywhere. The doc fragments describe them.
TIMEOUT = {"type": "float", "default": 120.0}
STATE_DIR = {"type": "path", "default": DEFAULT_STATE_DIR}
READY_MARKER = {"type": "str", "default": ""}


def check_absolute(path: str, option: str) -> None:
    """Raises OverlayError for an option that is no absolute path."""
    if not os.path.isabs(path):
        raise OverlayError(f"{option} must be an absolute path, not {path!r}")


@dataclass
class Outcome:
    """What a module has to say."""

    #: Return values of the module.
    values: dict[str, Any]
    #: None for a module that only looks.
    plan: Plan | None = None
    #: Observed state before, and what it is or would be after; shown as the diff where they differ.
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    #: Why the module fails although a part of its work is done, which the other fields tell of. Empty when it does not fail.
    failure: str = ""


@dataclass(frozen=True)
class Context:
    """What a module's function is given besides its parameters."""

    check_mode: bool
    #: To be called whenever work has got further; without a call for ``timeout`` seconds it is given up.
    progress: deadline.Progress
    timeout: float
    #: For what the work is at, where that is one of several things; told when it is given up.
    note: deadline.Note

    def carry_out(self, plan: Plan, handlers: Handlers) -> None:
        """Apply the actions of a plan one after the other; in check mode apply none.

        Raises UnknownActionError, also in check mode and before anything is changed, if there is no handler for one of them.
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
    """Run a module: parse its arguments, do its work within its time limit, and exit with its outcome."""
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
        # AnsibleModule writes its arguments to the log, and fails on these before it can say so.
        reason = f"an option has bytes that are not UTF-8 ({error.object!r}): Ansible cannot pass them to a module"
        # There is no AnsibleModule to say it with.
        print(json.dumps({"failed": True, "msg": reason}))  # pylint: disable=ansible-bad-function
        sys.exit(1)  # pylint: disable=ansible-bad-function
    timeout = module.params["timeout"]
    unusable = _unusable(module.params) or _unusable_timeout(timeout)
    if unusable:
        module.fail_json(msg=unusable)
    note = deadline.Note()

    def in_child(progress: deadline.Progress) -> Outcome:
        # Modes are set explicitly. This is for what programs make that are started.
        os.umask(0o022)
        return work(module.params, Context(module.check_mode, progress, timeout, note))

    try:
        outcome = deadline.run(in_child, timeout)
    except deadline.TimeLimitError as error:
        place = f" at {note.read()}" if note.read() else ""
        module.fail_json(
            msg=f"gave up: {error}{place}. A file server that does not answer is the usual reason; for slower work raise 'timeout'"
        )
    except deadline.WorkError as error:
        module.fail_json(msg="unexpected error; this is a bug of the module", exception=str(error))
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


def _unusable_timeout(timeout: float) -> str | None:
    if 0 < timeout <= _LONGEST_TIMEOUT:
        return None
    return f"timeout must be a number of seconds greater than 0, and up to {_LONGEST_TIMEOUT:g}, not {timeout:g}"


def _unusable(value: Any, name: str = "") -> str | None:
    """Return what is wrong with the first option in a value that no path, name or number can be; None where nothing is."""
    if isinstance(value, str):
        try:
            if b"\0" in os.fsencode(value):
                return f"option {name} has a NUL byte, which no path and no name can have"
        except UnicodeEncodeError:
            return f"option {name} has lone surrogates, which are no text: no path and no name can have them"
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
    """Return what a user is told of an error."""
    if isinstance(error, OverlayError):
        return str(error)
    name = error.filename
    if name is None:
        return f"{error.strerror}"
    shown = show(name) if isinstance(name, bytes) else show(to_bytes(name))
    hint = _hint(error, os.fsencode(name)) if isinstance(error, PermissionError) else ""
    return f"{shown}: {error.strerror}{hint}"


def _hint(error: PermissionError, path: bytes) -> str:
    as_root = os.geteuid() == 0
    # Without looking anything up there: the path is compared with those of mounts as it is.
    mount = containing_mount(namespaces.own_mounts(), path) if as_root and path.startswith(b"/") else None
    return refusal_hint(as_root, error.errno == errno.EACCES, mount.fstype if mount else None)
