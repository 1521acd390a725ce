#!/usr/bin/env bash
# Report views that are as declared, drifted, held, failed, not declared, and on a host that does not answer.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)
declare -A keeper

# The mounts of a host vanish with the process that keeps its mount namespace.
clean() {
    kill "${keeper[@]}"
    wait
    rm -rf "$place"
}
trap clean EXIT

release() {
    mkdir -p "$place/software/$1"
    echo "$1" > "$place/software/$1/name"
    touch "$place/software/$1/.ready"
}
release tool/1.0
mkdir "$place/manifests"

# The hosts are mount namespaces of this machine. Each has its own directory at the same path and its own /etc, and they
# share the software root.
mkdir "$place/here"
for host in one two three four; do
    mkdir -p "$place/$host" "$place/etc-$host/upper/systemd/system" "$place/etc-$host/work"
    : > "$place/etc-$host/upper/fstab"
    unshare --mount --propagation private sh -c "
        mount --bind $place/$host $place/here &&
        mount -t overlay -o lowerdir=/etc,upperdir=$place/etc-$host/upper,workdir=$place/etc-$host/work etc /etc &&
        touch $place/$host/up && exec sleep infinity" &
    keeper[$host]=$!
    until test -e "$place/$host/up"; do sleep 0.1; done
    printf '#!/bin/sh\nexec nsenter --target=%s --mount -- %s "$@"\n' "${keeper[$host]}" "$(command -v python)" \
        > "$place/$host/python"
    chmod 755 "$place/$host/python"
done

# on HOST COMMAND...: run COMMAND in the mount namespace of HOST.
on() {
    nsenter --target="${keeper[$1]}" --mount -- "${@:2}"
}

cat > "$place/inventory.yml" <<EOF
all:
  children:
    render:
      hosts:
        one:
        two:
        three:
        four:
      vars:
        ansible_connection: local
        ansible_python_interpreter: $place/{{ inventory_hostname }}/python
    lost:
      hosts:
        gone:
          ansible_connection: ssh
          ansible_host: 192.0.2.1
          ansible_ssh_common_args: -o ConnectTimeout=2 -o BatchMode=yes
  vars:
    overlay_become: false
EOF
cat > "$place/views.yml" <<EOF
overlay_root: $place/software
overlay_store: $place/manifests
overlay_state_dir: $place/here/state
overlay_ready_marker: .ready
overlay_persist: fstab
overlay_linger: 0
overlay_views:
  - name: all
    mountpoint: $place/here/all
    query: '@'
  - name: pinned
    mountpoint: $place/here/pinned
    releases: [tool/1.0]
EOF

book() {
    ansible-playbook -i "$place/inventory.yml" --forks 4 "$@" | tee "$place/log"
}
deploy() {
    book renderfarm.overlay.deploy -e @"$place/views.yml" "$@"
}

# report ARGS...: compare with what the hosts last were given, and write the files.
report() {
    book renderfarm.overlay.report -e overlay_state_dir="$place/here/state" -e overlay_report_dir="$place/report" "$@"
}

# shows TEXT: check that the table has a line with TEXT.
shows() {
    grep -F -- "$1" "$place/log"
}

# status HOST VIEW: print the status of a view on a host.
status() {
    python - "$place/report/views.json" "$@" <<'EOF'
import json, sys
path, host, view = sys.argv[1:]
with open(path) as stream:
    for row in json.load(stream)["rows"]:
        if row["host"] == host and row["view"] in (view, None):
            print(row["status"])
EOF
}

# A host without views has no row. A deployment ends with the report of all hosts.
report -e overlay_hosts=render
shows 'no views: the hosts have none in their state directories'
deploy -e overlay_hosts=render
shows '4 hosts at '
shows '8 as declared, 0 held, 0 not declared, 0 drifted, 0 unreachable, 0 failed'
# However many views a host has, a run that changes nothing has at most six tasks for it, skipped ones included.
deploy -e overlay_hosts=render
test "$(awk '$1 == "two" && /ok=/ {gsub(/[a-z]+=/, ""); print $3 + $7}' "$place/log")" -le 6

# Reports change nothing but their files, and need no declaration.
rm -r "$place/report"
report -e overlay_hosts=render --check
test ! -e "$place/report"
report -e overlay_hosts=render
shows '8 as declared'
for file in views.html views.csv views.json; do
    test "$(stat -c %a "$place/report/$file")" = 644
done
test "$(wc -l < "$place/report/views.csv")" = 9
grep -qF 'tool/1.0' "$place/report/views.html"
test "$(status one all)" = 'as declared'

# Held: one is rolled back. Drifted: two is unmounted by hand, three has lost what mounts it at boot.
release tool/2.0
deploy -e overlay_hosts=render
book renderfarm.overlay.rollback -e @"$place/views.yml" -e overlay_hosts=one -e overlay_view=all -e overlay_hold_reason=testing
shows 'held until the hold is lifted: testing'
deploy -e overlay_hosts=render
shows '7 as declared, 1 held, '
on two umount "$place/here/all"
on three sh -c ': > /etc/fstab'
on four mount -o remount,bind,suid,nodev,ro "$place/here/pinned"
deploy -e overlay_hosts=render --check
shows '3 as declared, 1 held, 0 not declared, 4 drifted, '
report -e overlay_hosts=render:lost
shows "all: it is not mounted at $place/here/all"
shows 'the lines in /etc/fstab that mount it at boot are missing'
shows 'pinned: mount option nosuid is off instead of on'
shows 'UNREACHABLE: 1 host'
shows '3 as declared, 1 held, 0 not declared, 4 drifted, 1 unreachable, 0 failed'
grep -q '^gone .* failed=0 ' "$place/log"
test "$(status one all)-$(status two all)-$(status three all)-$(status gone x)" = held-drifted-drifted-unreachable

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# With a declaration, what is not declared is named, and the lock says which generations are.
book renderfarm.overlay.resolve -e @"$place/views.yml" -e overlay_hosts=one -e overlay_lock_file="$place/lock.json"
cat > "$place/declared.yml" <<EOF
- ansible.builtin.import_playbook: renderfarm.overlay.report
  vars:
    overlay_hosts: four
    overlay_lock: "{{ lookup('ansible.builtin.file', '$place/lock.json') }}"
    overlay_views: [{name: all, mountpoint: $place/here/all, query: '@', options: {nodev: true}}]
EOF
book "$place/declared.yml" -e @"$place/views.yml" -e '{"overlay_views": [{"name": "all", "mountpoint": "'"$place"'/here/all",
    "query": "@", "options": {"nodev": true}}]}'
shows 'all: mount option nosuid is on instead of off'
shows 'pinned: it is on the host, and no such view is declared there'
sed -i '0,/"generation": "[0-9a-f]*"/s//"generation": "0123456789abcdef"/' "$place/lock.json"
book "$place/declared.yml" -e @"$place/views.yml" -e overlay_view=all
shows 'instead of 0123456789abcdef'
grep -qF 'not declared: ' "$place/log" && exit 1
book "$place/declared.yml" -e @"$place/views.yml" -e overlay_format=erfs && exit 1
shows 'did you mean erofs?'

# Facts are kept, also of hosts that do not answer.
cat > "$place/facts.yml" <<EOF
- ansible.builtin.import_playbook: renderfarm.overlay.report
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.assert:
        that: ansible_facts.overlay_report.status == wanted[inventory_hostname] | default('drifted')
      vars:
        wanted: {one: held, gone: unreachable}
EOF
ANSIBLE_SHOW_CUSTOM_STATS=true book "$place/facts.yml" -e overlay_state_dir="$place/here/state" -e overlay_hosts=all
shows 'CUSTOM STATS'

# Failed: the report is the last thing that a run shows, also if all hosts of a batch fail, and if the run stops.
on two mkdir -p "$place/here/other/precious"
cat > "$place/fails.yml" <<EOF
overlay_views:
  - name: all
    mountpoint: "$place/here/{{ 'other' if inventory_hostname == 'two' else 'all' }}"
    query: '@'
EOF
fails() {
    deploy -e @"$place/fails.yml" "$@" && exit 1
    tail -n 30 "$place/log"
    test "$(grep -c ' hosts at \| host at ' "$place/log")" = 1
}
fails -e overlay_hosts=one,two
shows 'FAILED: 1 host'
shows '0 as declared, 1 held, 0 not declared, 0 drifted, 0 unreachable, 1 failed'
fails -e overlay_hosts=two
shows 'FAILED: 1 host'
fails -e overlay_hosts=one,two,three,four -e overlay_serial=2 -e overlay_max_fail_percentage=0
shows 'the run ended before it came to 2 of the hosts: '
grep -q '^four .* ok=1 ' "$place/log"
fails -e overlay_hosts=two,one,three -e overlay_serial=1
shows 'the run ended before it came to 2 of the hosts: one, three'
report -e overlay_hosts=render
shows 'FAILED: 1 host'
shows 'is not empty'
on two rm -r "$place/here/other"

# Unreachable: alone, where the view is the first thing that is done on the host, and among others.
lock=(-e '{"overlay_lock": {"format": 1, "views": []}}')
fails -e overlay_hosts=gone -e host_software_root= "${lock[@]}"
shows 'UNREACHABLE: 1 host'
fails -e overlay_hosts=three,gone -e overlay_scan_host=three
shows 'UNREACHABLE: 1 host'
shows '1 as declared, 0 held, 0 not declared, 0 drifted, 1 unreachable, 0 failed'

# A view that cannot be resolved is failed on the hosts that declare it.
fails -e overlay_hosts=three,four -e '{"overlay_views": [{"name": "all", "mountpoint": "'"$place"'/here/all", "query": "@"},
    {"name": "pinned", "mountpoint": "'"$place"'/here/pinned", "releases": ["tool/9"]}]}'
shows '2 as declared, 0 held, 0 not declared, 0 drifted, 0 unreachable, 2 failed'

# Views that are unmounted as declared are as declared. They are not removed: each host would find those of the others.
deploy -e overlay_hosts=render -e overlay_state=unmounted
shows '8 as declared'
report -e overlay_hosts=render
shows '8 as declared'
