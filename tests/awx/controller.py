"""A stand-in for the API of AWX, for the modules of awx.awx. It keeps what they create, and refuses what AWX refuses.

AWX itself needs a cluster. What the stand-in refuses is in awx/main/models/jobs.py, awx/api/serializers.py and awx/main/utils/ansible.py
of AWX 24.6.1: prompts that a job template does not have, and playbooks that are not in the project.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Item = dict[str, Any]

#: What a launch may set, and the field of the job template that allows it.
PROMPTS = {
    "job_type": "ask_job_type_on_launch",
    "limit": "ask_limit_on_launch",
    "diff_mode": "ask_diff_mode_on_launch",
    "forks": "ask_forks_on_launch",
    "inventory": "ask_inventory_on_launch",
    "verbosity": "ask_verbosity_on_launch",
}
#: The endpoints whose items can be launched, and the type of these items.
LAUNCHED = {
    "job_templates": "job_template",
    "projects": "project",
    "inventory_sources": "inventory_source",
    "workflow_job_templates": "workflow_job_template",
    "workflow_approval_templates": "workflow_approval",
}
#: The fields of a template for an approval.
APPROVAL_FIELDS = ("name", "description", "timeout")
#: How AWX finds the playbooks of a project.
PLAYBOOK = re.compile(
    r"^\s*?-?\s*?(?:hosts|(ansible\.builtin\.)?include|(ansible\.builtin\.)?import_playbook):\s*?.*?$", re.M
)


class RefusedError(Exception):
    """AWX would answer a request with status 400."""


class Controller:
    """What is configured in AWX, by endpoint and ID."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.url = ""
        #: The requests that have written something.
        self.written: list[str] = []
        self._ids = itertools.count(1)
        self._items: dict[str, dict[int, Item]] = {}
        self._surveys: dict[int, Item] = {}
        self._associated: dict[tuple[int, str], list[int]] = {}
        self.create("organizations", {"name": "Default"})
        for name in ("Render nodes", "AWX"):
            self.create("credentials", {"name": name})

    # ---- reading

    def all(self, endpoint: str) -> list[Item]:
        return list(self._items.get(endpoint, {}).values())

    def get(self, endpoint: str, name: str) -> Item:
        [found] = [one for one in self.all(endpoint) if one.get("name", one.get("identifier")) == name]
        return found

    def survey(self, item: Item) -> list[Item]:
        spec: list[Item] = self._surveys.get(item["id"], {}).get("spec", [])
        return spec

    def associated(self, item: Item, kind: str) -> list[int]:
        return self._associated.get((item["id"], kind), [])

    def next_nodes(self, node: Item, kind: str) -> list[str]:
        """Return the identifiers of the nodes after a node of a workflow; `kind` is success, failure or always."""
        return [str(self.by_id(number)["identifier"]) for number in self.associated(node, f"{kind}_nodes")]

    def by_id(self, number: int) -> Item:
        [found] = [items[number] for items in self._items.values() if number in items]
        return found

    def everything(self) -> str:
        """Return all that is configured, as JSON text."""
        associated = {f"{number} {kind}": found for (number, kind), found in self._associated.items()}
        return json.dumps([self._items, self._surveys, associated], indent=1)

    # ---- writing

    def create(self, endpoint: str, fields: Item) -> Item:
        number = next(self._ids)
        url = f"/api/v2/{endpoint}/{number}/"
        item = {"extra_vars": "", **fields, "id": number, "url": url, "type": LAUNCHED.get(endpoint, endpoint)}
        item |= {"scm_revision": "", "summary_fields": {}} if endpoint == "projects" else {}
        item["related"] = {"survey_spec": f"{url}survey_spec/"} if endpoint.endswith("job_templates") else {}
        self._check(endpoint, item)
        self._items.setdefault(endpoint, {})[number] = item
        return item

    def update(self, endpoint: str, number: int, fields: Item) -> Item:
        if endpoint == "workflow_approval_templates":
            # The module also sends the fields of the node, which the API ignores.
            fields = {key: fields[key] for key in APPROVAL_FIELDS if key in fields}
        item = {**self._items[endpoint][number], **fields}
        self._check(endpoint, item)
        self._items[endpoint][number] = item
        return item

    def _check(self, endpoint: str, item: Item) -> None:
        if endpoint == "job_templates":
            playbook = self.project / item["playbook"]
            if not (playbook.is_file() and PLAYBOOK.search(playbook.read_text(encoding="utf-8"))):
                raise RefusedError(f"Playbook not found for project: {item['playbook']}")
        if endpoint == "schedules" and not re.match(r"DTSTART:\d{8}T\d{6}Z RRULE:FREQ=\w+;INTERVAL=\d+", item["rrule"]):
            raise RefusedError(f"rrule: {item['rrule']}")
        if endpoint in ("schedules", "workflow_job_template_nodes") and item.get("unified_job_template"):
            self.check_prompts(self.by_id(item["unified_job_template"]), item)

    def check_prompts(self, template: Item, launch: Item) -> None:
        """Raise RefusedError if a launch sets what its template does not ask for."""
        for field, prompt in PROMPTS.items():
            if launch.get(field) is not None and not template.get(prompt):
                raise RefusedError(f"{field}: Field is not configured to prompt on launch.")
        asked = {element["variable"] for element in self.survey(template)} if template.get("survey_enabled") else set()
        if set(launch.get("extra_data") or {}) - asked and not template.get("ask_variables_on_launch"):
            raise RefusedError(f"Variables {', '.join(launch['extra_data'])} are not allowed on launch.")

    # ---- requests

    def answer(self, method: str, url: str, data: Item) -> tuple[int, Any]:
        """Return the status and the body of an answer."""
        if method != "GET":
            self.written.append(f"{method} {url}")
        parts = urlsplit(url)
        endpoint, *rest = parts.path[len("/api/v2/") :].strip("/").split("/")
        try:
            if not rest:
                return (
                    self._list(endpoint, dict(parse_qsl(parts.query)))
                    if method == "GET"
                    else (201, self.create(endpoint, data))
                )
            number = int(rest[0])
            if len(rest) == 1:
                return 200, self._items[endpoint][number] if method == "GET" else self.update(endpoint, number, data)
            return self._below(method, self._items[endpoint][number], rest[1], data)
        except RefusedError as error:
            return 400, {"__all__": [str(error)]}

    def _list(self, endpoint: str, query: dict[str, str]) -> tuple[int, Item]:
        endpoints = list(LAUNCHED) if endpoint == "unified_job_templates" else [endpoint]
        # The API ignores a filter by a field that items of a type do not have.
        found = [
            item
            for one in endpoints
            for item in self.all(one)
            if all(str(item.get(field, value)) == value for field, value in query.items())
        ]
        return 200, _page(found)

    def _below(self, method: str, item: Item, name: str, data: Item) -> tuple[int, Any]:
        if name == "survey_spec":
            if method == "POST":
                self._surveys[item["id"]] = data
            return 200, self._surveys.get(item["id"], {})
        if name == "create_approval_template":
            approval = self.create(
                "workflow_approval_templates",
                {key: data[key] for key in APPROVAL_FIELDS if key in data},
            )
            item["unified_job_template"] = approval["id"]
            item["related"]["unified_job_template"] = approval["url"]
            return 201, approval
        associated = self._associated.setdefault((item["id"], name), [])
        if method == "GET":
            return 200, _page([{"id": number} for number in associated])
        (associated.remove if data.get("disassociate") else associated.append)(data["id"])
        return 204, None


def _page(items: list[Item]) -> Item:
    return {"count": len(items), "next": None, "previous": None, "results": items}


@contextlib.contextmanager
def serving(controller: Controller) -> Iterator[Controller]:
    """Serve the API of a controller on this machine, at its `url`."""

    class Handler(BaseHTTPRequestHandler):
        # An answer is sent in one piece.
        wbufsize = -1

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            data = json.loads(self.rfile.read(length) or b"{}")
            status, body = controller.answer(str(self.command), self.path, data)
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _handle  # noqa: N815 - the names that the base class calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    controller.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield controller
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
