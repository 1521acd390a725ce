"""The alert rules and the dashboard use metrics and labels that exist. `make metrics` tries them in Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import metrics

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples" / "monitoring"
#: The labels of each metric; `up` is Prometheus' own.
LABELS = {**{metrics.PREFIX + name: set(one.labels) for name, one in metrics.METRICS.items()}, "up": set[str]()}
#: Labels that Prometheus adds to every metric.
ADDED = {"instance", "job"}
STATUSES = {status.replace(" ", "_") for status in metrics.SHOWN_STATUSES}
#: The words of PromQL that are used.
WORDS = {
    *("and", "by", "count", "increase", "max", "max_over_time", "min", "on", "rate", "sum", "time", "topk", "unless"),
}

_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)(\{[^}]*\})?")
_LIST = re.compile(r"\b(by|on)\s*\(([^)]*)\)")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


def rules() -> list[dict[str, Any]]:
    read = yaml.safe_load((EXAMPLES / "rules.yml").read_text(encoding="utf-8"))
    return [rule for group in read["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((EXAMPLES / "dashboard.json").read_text(encoding="utf-8"))
    return read


def targets() -> list[dict[str, Any]]:
    return [target for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def complaints(expression: str) -> Iterator[str]:
    """Yield what is wrong with the names in a query."""
    left = expression
    for match in _LIST.finditer(expression):
        for label in filter(None, re.split(r"[,\s]+", match[2])):
            if label not in ADDED.union(*LABELS.values()):
                yield f"no metric has the label {label}"
        left = left.replace(match[0], " ")
    left = re.sub(r"\[\w+\]|\b\d+\b", " ", left)
    for name, selector in _SELECTOR.findall(left):
        if name in WORDS and not selector:
            continue
        if name not in LABELS:
            yield f"there is no metric {name}"
            continue
        for label, value in _MATCHER.findall(selector):
            if label not in LABELS[name] | ADDED:
                yield f"{name} has no label {label}"
            if label == "status" and value not in STATUSES:
                yield f"there is no status {value}"


def test_the_dashboard_and_the_rules_use_every_metric() -> None:
    used = " ".join([rule["expr"] for rule in rules()] + [target["expr"] for target in targets()])
    assert [name for name in LABELS if not re.search(rf"\b{name}\b", used)] == []


def test_the_documentation_lists_every_metric_with_its_labels() -> None:
    text = (CHECKOUT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", text, re.M)
    listed = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert listed == {name: metric.labels for name, metric in metrics.METRICS.items()}


def test_the_documentation_lists_every_alert() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Renderfarm\w+)` \|", text, re.M) == [rule["alert"] for rule in rules()]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_uses_what_exists(rule: dict[str, Any]) -> None:
    assert list(complaints(rule["expr"])) == []
    texts = json.dumps(rule["annotations"])
    labels = set(re.findall(r"\$labels\.(\w+)", texts))
    assert labels <= ADDED.union(*(LABELS[name] for name in LABELS if name in rule["expr"]))


def test_each_rule_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    read = yaml.safe_load((EXAMPLES / "rules.test.yml").read_text(encoding="utf-8"))
    tried = [(one["alertname"], bool(one["exp_alerts"])) for test in read["tests"] for one in test["alert_rule_test"]]
    assert set(tried) == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


def test_the_series_of_the_tests_exist() -> None:
    read = yaml.safe_load((EXAMPLES / "rules.test.yml").read_text(encoding="utf-8"))
    series = [one["series"] for test in read["tests"] for one in test["input_series"]]
    assert [(one, found) for one in series for found in complaints(one)] == []


@pytest.mark.parametrize("panel", dashboard()["panels"], ids=lambda panel: str(panel["title"]))
def test_a_panel_uses_what_exists(panel: dict[str, Any]) -> None:
    queries = panel.get("targets", ())
    assert [found for target in queries for found in complaints(target["expr"])] == []
    known = ADDED.union(*(LABELS[name] for target in queries for name in LABELS if name in target["expr"]))
    legends = {name for target in queries for name in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}
    assert legends <= known
    if panel["type"] == "table":
        named = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
        assert {name for name in named if not name.startswith("Value")} <= known


def test_the_variables_list_labels_that_exist() -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
            assert match
            assert match[2] in LABELS[match[1]] | ADDED
            assert variable["query"]["query"] == variable["definition"]


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It has no number of an installation, takes the data source from its variable, and its panels do not overlap."""
    read = dashboard()
    assert read["id"] is None
    places = [(panel["datasource"], panel["title"]) for panel in read["panels"] if panel["type"] != "row"]
    assert {json.dumps(source) for source, _title in places} == {'{"type": "prometheus", "uid": "${datasource}"}'}
    assert len({panel["id"] for panel in read["panels"]}) == len(read["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in read["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _y in cells) < 24


@pytest.mark.parametrize(
    "expression",
    [
        "renderfarm_overlay_view_failed == 0",
        'renderfarm_overlay_view_held{mountpoint="/"}',
        'renderfarm_overlay_view_status{status="broken"} == 1',
        "sum by (host) (renderfarm_overlay_view_held)",
        "node_load1 > 5",
    ],
)
def test_a_name_that_does_not_exist_is_noticed(expression: str) -> None:
    assert list(complaints(expression))
