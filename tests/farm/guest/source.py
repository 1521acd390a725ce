"""Run the event source as ansible-rulebook does, and print a line of JSON for each event and each line of its log.

python3 source.py SOURCE ARGUMENTS     a path, and JSON
"""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
import sys
from typing import Any


class Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("log", record.getMessage())


def say(kind: str, what: Any) -> None:
    print(json.dumps({kind: what}), flush=True)


async def run(source: str, arguments: dict[str, Any]) -> None:
    # ansible-rulebook gives a source a queue of one event, and takes the events from it.
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
    task = asyncio.create_task(runpy.run_path(source)["main"](queue, arguments))
    say("started", arguments)
    while not task.done():
        taking = asyncio.create_task(queue.get())
        await asyncio.wait({task, taking}, return_when=asyncio.FIRST_COMPLETED)
        if taking.done():
            say("event", taking.result())
    await task


if __name__ == "__main__":
    logging.getLogger().addHandler(Log())
    asyncio.run(run(sys.argv[1], json.loads(sys.argv[2])))
