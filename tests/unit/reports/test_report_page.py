"""The page of a report: one valid file that refers to nothing outside of it, is small, and has all that the rows say."""

from __future__ import annotations

import calendar
import json
import re
import time
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import Row, rows_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report_page import page_data
from ansible_collections.renderfarm.overlay.tests.unit.reports.farm_rows import HOSTILE, NOW, farm_rows, hostile_rows

TEMPLATES = Path(__file__).resolve().parents[3] / "playbooks" / "templates"
#: Elements without an end tag.
VOID = {"input", "link", "meta"}
#: Bytes that the page of a large farm must stay below.
MOST_BYTES = 2_000_000


def page(rows: list[dict[str, Any]], **more: str) -> str:
    """Return the page as the template module makes it."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, undefined=jinja2.StrictUndefined)  # noqa: S701
    template = environment.get_template("report.html.j2")
    return template.render(_overlay_report_data=page_data(rows_of(rows), NOW), **more)


class Document(HTMLParser):
    """Elements, attributes and text of a page. Fails if start and end tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.declarations: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_decl(self, decl: str) -> None:
        self.declarations.append(decl)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def attributes(self, name: str) -> list[str]:
        return [str(attributes[name]) for _tag, attributes in self.elements if name in attributes]


def test_the_page_is_well_formed() -> None:
    document = Document(page(farm_rows(5, 2, 12)))
    assert document.declarations == ["DOCTYPE html"]
    assert {"html", "head", "body", "title", "main", "h1"} <= {tag for tag, _attributes in document.elements}
    assert dict(document.elements)["html"] == {"lang": "en"}
    identifiers = document.attributes("id")
    assert len(set(identifiers)) == len(identifiers)
    for name in ("for", "aria-controls", "aria-labelledby"):
        assert document.attributes(name)
        assert set(document.attributes(name)) <= set(identifiers)


def test_the_page_has_what_uses_releases() -> None:
    rows = rows_of(farm_rows(5, 2, 12))
    assert json.loads(page_data(rows, NOW))["uses"] is None
    process = {"pid": 4711, "name": "hython</script>", "how": ["mapped", "open"], "view": "view00"}
    usage = {
        "unknown": {"lost": "unreachable: no route"},
        "releases": [
            {
                "release": "houdini/19.5",
                "processes": {
                    "render9": [
                        {**process, "paths": ["bin/hython"], "path_count": 3},
                        {**process, "view": None, "paths": ["."], "path_count": 1},
                    ]
                },
            },
            {"release": "maya/2025", "processes": {}},
        ],
    }
    data = json.loads(page_data(rows, NOW, usage))
    shown = [
        [
            None if release < 0 else data["releases"][release],
            data["hosts"][host],
            None if view < 0 else data["views"][view],
            *(data["texts"][text] for text in texts),
        ]
        for release, host, view, *texts in data["uses"]
    ]
    user = ["hython</script> (4711)", "mapped, open"]
    assert shown == [
        [None, "lost", None, "unknown", "", "unreachable: no route"],
        ["houdini/19.5", "render9", "view00", *user, "bin/hython, 2 more"],
        ["houdini/19.5", "render9", None, *user, "."],
    ]
    many = {"unknown": {f"lost{number}": "gone" for number in range(5100)}, "releases": []}
    data = json.loads(page_data(rows, NOW, many))
    assert (len(data["uses"]), data["unlisted_uses"]) == (5000, 100)


def test_every_control_has_a_name() -> None:
    document = Document(page([]))
    labelled = set(document.attributes("for"))
    assert {str(values["id"]) for tag, values in document.elements if tag in ("input", "select")} == labelled
    assert all(values.get("type") == "button" for tag, values in document.elements if tag == "button")


def test_the_script_asks_only_for_elements_that_are_there() -> None:
    text = page([])
    identifiers = set(Document(text).attributes("id"))
    # The active cell is made by the script.
    assert set(re.findall(r'\$\("([^"]+)"\)', text)) <= identifiers | {"active"}


def test_the_page_refers_to_nothing_outside_of_it() -> None:
    text = page(farm_rows(5, 2, 12))
    document = Document(text)
    assert document.attributes("src") == []
    assert document.attributes("href") == ["data:,"]
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(|//[a-z]", text)
    [policy] = [values["content"] for tag, values in document.elements if "http-equiv" in values]
    assert str(policy).startswith("default-src 'none';")
    assert "innerHTML" not in text
    assert "eval(" not in text


def test_the_title_is_escaped() -> None:
    text = page([], _overlay_report_title="<b> & </title>")
    assert "<title>&lt;b&gt; &amp; &lt;/title&gt;</title>" in text
    assert "<title>Views of the render farm</title>" in page([])


def test_hostile_texts_stay_in_their_place() -> None:
    plain, hostile = Document(page([])), Document(page(hostile_rows()))
    assert hostile.elements == plain.elements
    text = page_data(rows_of(hostile_rows()))
    assert text.isascii()
    assert not set(text) & set("<>&")
    assert set(json.loads(text)["hosts"]) == set(HOSTILE)


def test_the_page_of_a_large_farm_is_small() -> None:
    rows = farm_rows(1000, 20, 500)
    known = set()
    for row in rows:
        # Given once for each generation, since checking 7 million texts takes time.
        if row.get("generation") in known:
            row.pop("releases", None)
        known.add(row.get("generation"))
    text = page(rows)
    assert 100_000 < len(text.encode()) < MOST_BYTES
    assert len(json.loads(page_data(rows_of(rows)))["releases"]) > 490


def test_a_page_with_a_reason_of_its_own_for_each_row_is_small() -> None:
    rows = farm_rows(1000, 20, 10)
    for number, row in enumerate(rows):
        row.update(status="failed", failure=f"{number} " + "x" * 1000)
    text = page(rows)
    assert len(text.encode()) < MOST_BYTES
    assert "there are too many different reasons for this page: see the CSV" in text


def absolute(distances: list[int]) -> list[int]:
    return list(accumulate(distances))


def read(text: str) -> list[Row]:
    """Return the rows that the data of a page stand for, as the script reads them."""
    data = json.loads(text)

    def when(before: int) -> str | None:
        return None if before < 0 else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(data["base"] - before))

    rows = []
    for host, values in zip(data["hosts"], data["rows"]):
        for place in range(0, len(values), 6):
            kind, since, size, last_run, verified, problems = values[place : place + 6]
            number, status, declared, mountpoint, reasons = data["kinds"][kind]
            view, generation, listed = data["sets"][number]
            rows.append(
                Row(
                    host=host,
                    status=data["statuses"][status],
                    view=None if view < 0 else data["views"][view],
                    generation=generation,
                    declared_generation=declared,
                    since=when(since),
                    mountpoint=None if mountpoint < 0 else data["texts"][mountpoint],
                    releases=tuple(data["releases"][one] for one in absolute(data["lists"][listed])),
                    drift=tuple(data["texts"][one] for one in reasons),
                    bytes_on_disk=size,
                    last_run=when(last_run),
                    verified_at=when(verified),
                    verified_problems=None if problems < 0 else problems,
                )
            )
    return rows


@pytest.mark.parametrize("size", [(0, 0, 0), (1, 1, 1), (5, 2, 12), (120, 4, 60)])
def test_the_data_have_all_that_the_rows_say(size: tuple[int, int, int]) -> None:
    rows = rows_of(farm_rows(*size))
    found = read(page_data(rows, NOW))
    assert len(found) == len(rows)
    for before, after in zip(rows, found):
        assert sorted(before.releases) == sorted(after.releases)
        assert tuple(before.reasons()) == after.drift
        for name in ("host", "status", "view", "generation", "declared_generation", "since", "mountpoint", "last_run"):
            assert getattr(before, name) == getattr(after, name)
        assert (before.verified_at, before.verified_problems) == (after.verified_at, after.verified_problems)
        assert before.bytes_on_disk == after.bytes_on_disk


def test_the_time_may_be_left_out() -> None:
    assert json.loads(page_data([], NOW))["time"] == calendar.timegm((2026, 11, 27, 15, 0, 0))
    assert json.loads(page_data([]))["time"] is None


def test_the_data_are_not_taken_for_a_dictionary() -> None:
    assert page_data([]).startswith(" {")


def test_problems_are_listed_up_to_a_limit() -> None:
    rows = [{"host": f"n{number}", "status": "failed", "failure": f"error {number} occurred"} for number in range(400)]
    data = json.loads(page_data(rows_of(rows)))
    assert (len(data["problems"]), data["unlisted_problems"]) == (300, 100)
    status, reason, views, hosts = data["problems"][0]
    assert (data["statuses"][status], data["texts"][reason], views) == ("failed", "error 0 occurred", [])
    assert [data["hosts"][one] for one in absolute(hosts)] == ["n0"]
