# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare which generations of a view the hosts of a deployment show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import host_list


def generation_notes(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return a line for each view that hosts show in different generations, and for each view that a hold keeps at another one.

    ``results`` has, for each host, the views as the module ``view`` returns them. A view that failed, or is not shown, is left out.
    """
    shown: dict[str, dict[str, list[str]]] = {}
    held: dict[str, dict[tuple[str, str], list[str]]] = {}
    for host, views in results.items():
        for view in views:
            generation = view.get("generation")
            if view["failed"] or not generation:
                continue
            shown.setdefault(view["name"], {}).setdefault(generation, []).append(host)
            if view.get("held"):
                hold = generation, view["held"]["reason"]
                held.setdefault(view["name"], {}).setdefault(hold, []).append(host)
    notes = []
    for name, generations in shown.items():
        if len(generations) > 1:
            listed = "; ".join(f"{generation} on {host_list(hosts)}" for generation, hosts in generations.items())
            notes.append(f"view {name}: hosts show different generations: {listed}")
        for (generation, reason), hosts in held.get(name, {}).items():
            why = f" ({reason})" if reason else ""
            notes.append(
                f"view {name}: a rollback holds generation {generation} on {host_list(hosts)}{why}; overlay_lift_holds=true ends the hold"
            )
    return notes
