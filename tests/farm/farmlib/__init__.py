"""Run a render farm of virtual machines on one host: an NFS server and render nodes with stock Debian kernels."""
