# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What reports know about a view that was verified: its drift, and the metrics of its host."""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import host_report, metrics_file
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.host_report import Explain
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import Findings
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


def add_drift(findings: Findings, paths: ViewPaths, explain: Explain) -> None:
    """Add to the findings how a view differs from what the last run declared for it."""
    row = host_report.of_view(paths.name, os.path.dirname(os.path.dirname(paths.root)), explain)
    for text in row["drift"]:
        findings.add(os.fsencode(row["mountpoint"] or "/"), "mount_differs", text)


def write_metrics(path: str, state_dir: str, explain: Explain) -> None:
    """Write the metrics of all views of a state directory. Raises OverlayError or OSError if they cannot be written."""
    try:
        metrics_file.write(path, host_report.of_others([state_dir], (), False, explain))
    except (OverlayError, OSError) as error:
        raise OverlayError(f"metrics_file: {explain(error)}") from None
