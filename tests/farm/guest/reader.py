"""Open files of a tree at random until told to stop, and compare each with its digest. Runs on a render node.

    python3 reader.py ROOT DIGESTS STOP OPENS   DIGESTS is the output of sha256sum for paths relative to ROOT

Ends when the file STOP exists and at least OPENS files were opened. Prints the counts and the first faults as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys

#: How often to look for the file STOP, in opens.
LOOK = 100
FAULTS_SHOWN = 5


def main() -> None:
    root, digests, stop, opens = sys.argv[1:]
    with open(digests, encoding="utf-8") as file:
        wanted = [tuple(reversed(line.rstrip("\n").split("  ", 1))) for line in file]
    chance = random.Random(1)
    found = {"opens": 0, "failed": 0, "wrong": 0}
    faults = []
    while found["opens"] < int(opens) or not os.path.exists(stop):
        for path, digest in chance.choices(wanted, k=LOOK):
            found["opens"] += 1
            try:
                with open(f"{root}/{path}", "rb") as file:
                    content = file.read()
            except OSError as error:
                found["failed"] += 1
                faults.append(str(error))
            else:
                if hashlib.sha256(content).hexdigest() != digest:
                    found["wrong"] += 1
                    faults.append(path)
    json.dump({**found, "faults": faults[:FAULTS_SHOWN]}, sys.stdout)


if __name__ == "__main__":
    main()
