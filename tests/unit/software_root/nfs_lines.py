"""Live NFS mounts, from lines of mountinfo as Linux 6.1 and 6.12 print them, and declarations to compare them with."""

from __future__ import annotations

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_options

PATH = b"/net/software"
SOURCE = "filer:/export/software"
V4 = (
    b"90 29 0:48 / /net/software ro,nodev,noatime shared:40 - nfs4 filer:/export/software ro,vers=4.2,rsize=262144,wsize=262144,"
    b"namlen=255,acregmin=3600,acregmax=3600,acdirmin=3600,acdirmax=3600,hard,nocto,proto=tcp,timeo=600,retrans=2,sec=sys,"
    b"clientaddr=10.0.2.16,local_lock=none,addr=10.0.2.15\n"
)
#: With actimeo=60. The kernel does not print the two parts whose default is 60.
V3 = (
    b"91 29 0:49 / /net/software rw,relatime shared:41 - nfs filer:/export/software rw,vers=3,rsize=1048576,wsize=1048576,"
    b"namlen=255,acregmin=60,acdirmin=60,soft,nolock,proto=tcp,nconnect=4,timeo=600,retrans=2,sec=sys,mountaddr=10.0.2.15,mountvers=3,"
    b"mountproto=tcp,lookupcache=pos,local_lock=all,addr=10.0.2.15\n"
)
DEFAULT_OPTIONS = ("ro", "vers=4.2", "hard", "nocto", "actimeo=3600", "nodev")
OVERLAY = b"95 29 0:50 / /software ro - overlay overlay ro,lowerdir+=/state/layer,datadir+=/net/software,redirect_dir=on,metacopy=on\n"


def mount(line: bytes) -> Mount:
    (live,) = parse(line)
    return live


def spec(*options: str, source: str = SOURCE) -> nfs_options.SoftwareRootSpec:
    return nfs_options.software_root_spec(PATH, source, "nfs", options)
