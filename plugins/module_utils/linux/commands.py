# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running programs of the system, which may hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def run(argv: list[str], seconds: float) -> tuple[int, bytes]:
    """Run a program without input; return its exit status, and what it wrote to both of its outputs.

    Raises FileNotFoundError where there is no such program, and TimeoutError after ``seconds``, when it and its helpers are killed.
    """
    # A session of its own, so that its helpers can be ended as well. The run_command of AnsibleModule has no time limit.
    process = subprocess.Popen(  # pylint: disable=ansible-bad-function
        argv,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with process:
        try:
            output, _none = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError from None
    return process.returncode, output
