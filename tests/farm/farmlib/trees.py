"""Summarise a tree in one line, to compare the tree on a node with the one on the server."""

from __future__ import annotations

from farmlib.machines import Machine

# All attributes of an entry, except the size of a directory.
_LISTING = r"""
cd {root} && find . -name lost+found -prune -o -mindepth {depth} \
    \( -type d -printf '%P\0%y %m %U:%G %T@\0' -o -printf '%P\0%y %m %U:%G %T@ %s %n %l\0' \) |
    python3 -c "import hashlib, sys; parts = sys.stdin.buffer.read().split(b'\0')[:-1]
pairs = sorted(zip(parts[::2], parts[1::2]))
print(len(pairs), hashlib.sha256(repr(pairs).encode()).hexdigest())"
"""

_CONTENT = """
import hashlib, os, random, sys
root, number = sys.argv[1], int(sys.argv[2])
names = sorted(os.path.relpath(os.path.join(base, name), root) for base, _, files in os.walk(root) for name in files)
chance = random.Random(1)
names = [name for name in chance.sample(names, number) if not os.path.islink(f"{root}/{name}")]
digest = hashlib.sha256()
for name in names:
    digest.update(name.encode() + open(f"{root}/{name}", "rb").read())
print(len(names), digest.hexdigest())
"""


def listing(machine: Machine, root: str, depth: int = 3) -> str:
    """Return the number of entries from `depth` on, and a digest of their names, kinds, modes, owners, times, sizes and links."""
    return machine.output(_LISTING.format(root=root, depth=depth), timeout=600)


def content(machine: Machine, root: str, number: int = 400) -> str:
    """Choose `number` entries, the same for the same names. Return how many are files, and a digest of their content."""
    return machine.output(["python3", "-c", _CONTENT, root, str(number)], timeout=600)
