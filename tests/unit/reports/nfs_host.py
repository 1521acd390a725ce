"""What the kernel of a host with two views over NFS says about its mounts."""

from __future__ import annotations

#: Shortened, from a guest of the farm with Linux 6.12, and with other names and numbers.
MOUNTSTATS = b"""\
device /dev/root mounted on / with fstype ext4
device proc mounted on /proc with fstype proc
device filer:/export/software mounted on /net/software with fstype nfs4 statvers=1.1
\topts:\tro,vers=4.2,rsize=131072,wsize=131072,namlen=255,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60,hard
\tage:\t0
\timpl_id:\tname='',domain='',date='0,0'
\tcaps:\tcaps=0xfffbc0bf,wtmult=512,dtsize=131072,bsize=0,namlen=255
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t1 3 0 0 1 2 6 0 0 0 0 0 2 0 0 0 0 0 0 0 0 0 0 0 0 0 0\x20
\tbytes:\t0 0 0 0 0 0 0 0\x20
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 2 0 0 36 36 0 36 0 2 0 0
\tper-op statistics
\t        NULL: 1 1 0 44 24 1 1 2 0
\t        READ: 0 0 0 0 0 0 0 0 0
\t      ACCESS: 121 121 0 328 336 0 2 2 0
\t     GETATTR: 2 2 0 312 480 0 1 1 0
\t      LOOKUP: 2241 2241 0 344 372 0 3 3 1361
\t    SEQUENCE: 4 4 0 0 0 0 0 0 0
\t   READ_PLUS: 0 0 0 0 0 0 0 0 0

device filer:/export/old mounted on /mnt/old\\040release with fstype nfs statvers=1.1
\topts:\tro,vers=3,nolock
\tage:\t7
\tRPC iostats version: 1.1  p/v: 100003/3 (nfs)
\txprt:\ttcp 752 1 2 0 0 12 12 0 12 0 2 0 0
\tper-op statistics
\t     GETATTR: 3 3 0 260 336 0 1 2
\t READDIRPLUS: 1 1 0 116 692 0 1 1

device overlay mounted on /software with fstype overlay
"""

MOUNTINFO = b"""\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
22 21 0:5 / /proc rw - proc proc rw
30 21 0:41 / /net/software ro,relatime shared:2 - nfs4 filer:/export/software ro,vers=4.2
31 21 0:42 / /mnt/old\\040release ro,relatime shared:3 - nfs filer:/export/old ro,vers=3
32 21 0:41 /usd /srv/usd ro,relatime shared:4 - nfs4 filer:/export/software ro,vers=4.2
33 21 0:43 / /net/manifests rw,relatime shared:5 - nfs4 filer:/export/manifests rw,vers=4.2
40 21 0:50 / /software ro,nodev - overlay overlay ro,lowerdir+=/var/lib/layer,datadir+=/net/software/releases,metacopy=on
41 21 0:51 / /redirected ro,nodev - overlay overlay ro,lowerdir=/var/lib/layer:/mnt/old\\040release,metacopy=on
42 21 0:52 / /again ro,nodev - overlay overlay ro,lowerdir=/var/lib/layer::/srv/usd,metacopy=on
43 21 0:53 / /local ro,nodev - overlay overlay ro,lowerdir=/var/lib/layer::/srv/local,metacopy=on
"""
