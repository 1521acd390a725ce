"""A rollout, scheduled enforcement, drift and a rollback: jobs of the configured job templates in ansible-runner, on real mounts."""

from __future__ import annotations

import json

from ansible_collections.renderfarm.overlay.tests.awx.controller import Controller
from ansible_collections.renderfarm.overlay.tests.awx.jobs import HOSTS, Farm, Job

CANARY, OTHER = HOSTS


def changed(job: Job) -> list[str]:
    """Return the hosts that a job changed."""
    assert job.status == 0, job.output
    return sorted(job.changed)


def enabled(controller: Controller) -> bool:
    return bool(controller.get("schedules", "Enforce views").get("enabled", True))


def test_what_is_rolled_out_is_enforced_until_the_next_rollout(controller: Controller, farm: Farm) -> None:
    farm.publish("houdini/20.5.410", "usd/25.05")
    # Without a lock, the first deployment resolves the views itself. All answers of its survey are blank.
    assert changed(farm.launch(controller, "Deploy views")) == [CANARY, OTHER]
    farm.publish("houdini/21.0")

    # The rollout, up to the approval.
    assert changed(farm.launch_node(controller, "pause", {})) == ["localhost"]
    assert not enabled(controller)
    resolved = farm.launch_node(controller, "resolve", {})
    assert changed(resolved) == [CANARY]
    lock = resolved.artifacts
    assert {view["name"] for view in json.loads(lock["overlay_lock"])["views"]} == {"software", "show"}
    assert changed(farm.launch_node(controller, "canary", lock)) == [CANARY]
    assert "21.0" in farm.shown(CANARY, "houdini")
    assert farm.shown(OTHER, "houdini") == ["20.5.410"]

    # It goes on after the approval. A release that is published meanwhile is not deployed.
    farm.publish("houdini/22.0")
    assert changed(farm.launch_node(controller, "promote", lock)) == [OTHER]
    assert changed(farm.launch_node(controller, "advance", lock)) == ["localhost"]
    assert enabled(controller)

    # The report at its end is kept as artifacts, and as facts of each host. These are no variables of the declaration.
    report = farm.launch_node(controller, "report", lock)
    assert changed(report) == []
    assert report.artifacts["overlay_report"]["statuses"]["as_declared"] == 4
    assert farm.remembered(OTHER)["overlay_report"]["statuses"]["as_declared"] == 2

    # The enforcement has the lock now.
    steady = farm.launch(controller, "Deploy views")
    assert changed(steady) == []
    assert [farm.shown(host, "houdini") for host in HOSTS] == [["20.5.410", "21.0"]] * 2
    # However many views a host has, it costs at most this. The first host also resolves the views.
    assert steady.tasks_of(OTHER) <= 6
    assert len(steady.events_of(OTHER)) <= 15

    verified = farm.launch(controller, "Verify views")
    assert changed(verified) == []
    assert verified.artifacts["overlay_verification"]["ok"]

    # The check for drift finds what differs, and changes nothing.
    farm.on(OTHER, "umount", f"{farm.here}/software")
    assert changed(farm.launch(controller, "Deploy views", job_type="check")) == [OTHER]
    assert not farm.is_mounted(OTHER)

    # A rollback with otherwise blank answers goes to the previous generation, and the enforcement leaves the view there.
    assert changed(farm.launch(controller, "Roll back views", {"overlay_view": "software"})) == [CANARY, OTHER]
    assert [farm.shown(host, "houdini") for host in HOSTS] == [["20.5.410"]] * 2
    assert changed(farm.launch(controller, "Deploy views")) == []
    assert [farm.shown(host, "houdini") for host in HOSTS] == [["20.5.410"]] * 2
