#!/usr/bin/env bash
# Call the playbooks as users do: by name, with several hosts, with --check and --limit, and modules ad hoc.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)

clean() {
    awk -v place="$place/" 'index($5, place) == 1 {print $5}' /proc/self/mountinfo | tac | xargs -r umount -l
    rm -rf "$place"
}
trap clean EXIT

mkdir -p "$place/manifests" "$place/software/tool/1.0" "$place/software/tool/1.1" "$place/software/lib/3"
for release in tool/1.0 tool/1.1 lib/3; do
    echo "$release" > "$place/software/$release/name"
    touch "$place/software/$release/.ready"
done
# Links to a release, and out of the software root.
ln -s 1.1 "$place/software/tool/stable"
ln -s /nowhere/tool-2.0 "$place/software/tool/2.0"

# The hosts are the same machine: what one did, two finds done. Three has its own view.
cat > "$place/inventory.yml" <<EOF
all:
  hosts:
    one:
    two:
    three:
      overlay_views:
        - name: old
          mountpoint: $place/old
          releases: [tool/1.0]
  vars:
    ansible_connection: local
    ansible_python_interpreter: "$(command -v python)"
    overlay_become: false
    overlay_root: $place/software
    overlay_store: $place/manifests
    overlay_state_dir: $place/state
    overlay_ready_marker: .ready
    # A variable of the role has no effect on the playbook.
    view_ready_marker: .nowhere
    overlay_views:
      - name: newest
        mountpoint: $place/newest
        query: newest(@)
        links: [{path: tool/current, target: '1.1'}]
      - name: all
        mountpoint: $place/all
        query: '@'
        state_dir: $place/state-of-all
EOF

run() {
    ansible-playbook -i "$place/inventory.yml" -e overlay_hosts=all --forks 1 "$@" | tee "$place/log"
}

# recap HOST CHANGED: check that no task of HOST failed and that CHANGED tasks changed something.
recap() {
    grep -Eq "^$1 +: .* changed=$2 +unreachable=0 +failed=0 " "$place/log"
}

run renderfarm.overlay.deploy --limit one --check
grep -q 'check mode ends here' "$place/log"
test -z "$(ls -A "$place/manifests")"
test ! -e "$place/state"

# Without overlay_hosts, no playbook does anything.
refused() {
    ansible-playbook -i "$place/inventory.yml" "$@" > "$place/log" 2>&1 && exit 1
    grep -q 'PLAY \|TASK ' "$place/log" && exit 1
    grep -q 'overlay_hosts must name the hosts' "$place/log"
}
for book in deploy remove rollback move; do
    refused "renderfarm.overlay.$book"
done
refused renderfarm.overlay.deploy --limit one
refused renderfarm.overlay.deploy -e overlay_hosts=

# A missing store is not created: its share may not be mounted.
run renderfarm.overlay.deploy --limit one -e overlay_store="$place/nowhere/manifests" && exit 1
grep -q "manifest store $place/nowhere/manifests does not exist: is it mounted?" "$place/log"
test ! -e "$place/nowhere"
test ! -e "$place/newest"

run renderfarm.overlay.deploy --limit one --check -e overlay_root="$place/nowhere" -e host_software_root=
grep -q "check mode ends here, since software root $place/nowhere does not exist" "$place/log"

# Changed: the resolution, with its scans and records, and the views.
run renderfarm.overlay.deploy --limit one,two
recap one 2
recap two 0
test "$(grep -c '^scanning .*tool/1.0' "$place/log")" = 1
test "$(cat "$place/newest/tool/1.1/name")" = tool/1.1
test ! -e "$place/newest/tool/1.0"
test "$(cat "$place/newest/tool/current/name")" = tool/1.1
test "$(cat "$place/all/tool/1.0/name")" = tool/1.0
test "$(readlink "$place/newest/tool/stable")" = 1.1
test ! -L "$place/newest/tool/2.0"
grep -q 'link tool/2.0 is passed over: it leads to /nowhere/tool-2.0, which is outside of the software root' "$place/log"
# What an entry says overrides what the views share.
test -e "$place/state-of-all/views/all/current"
test ! -e "$place/state/views/all"

# Variables on the command line are strings, also where a boolean or a number is meant.
run renderfarm.overlay.deploy -e overlay_keep_setid=false -e overlay_sample=5
recap one 1
recap two 0
recap three 1
test "$(cat "$place/old/tool/1.0/name")" = tool/1.0
test ! -L "$place/old/tool/stable"
grep -q 'view old: link tool/stable is left out, since the view does not show tool/1.1' "$place/log"
test ! -e "$place/old/lib"

run renderfarm.overlay.deploy --check --diff
recap one 0
recap two 0
recap three 0
# However many views a host has, a run that changes nothing has at most six tasks for it, skipped ones included.
test "$(awk '$1 == "two" && /ok=/ {gsub(/[a-z]+=/, ""); print $3 + $7}' "$place/log")" -le 6

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# A list that names a withdrawn release is refused, although the release was scanned. A query leaves the release out.
rm "$place/software/tool/1.0/.ready"
run renderfarm.overlay.deploy --limit three && exit 1
grep -q 'release tool/1.0 is not ready: it has no .ready, so it was withdrawn' "$place/log"
run renderfarm.overlay.deploy --limit one --check --diff
grep -q '^-.*tool/1.0' "$place/log"
touch "$place/software/tool/1.0/.ready"
run renderfarm.overlay.deploy --check
recap one 0
recap three 0

# A release that is passed over is named for those who publish it, and one that was deleted stops its view alone.
mkdir "$place/software/tool/1.9"
mkdir "$place/software/gone" "$place/software/gone/1"
touch "$place/software/gone/1/.ready"
cat > "$place/deleted.yml" <<EOF
overlay_views:
  - {name: newest, mountpoint: "$place/newest", query: "newest(@)", links: [{path: tool/current, target: '1.1'}]}
  - {name: deleted, mountpoint: "$place/deleted", releases: [gone/1, lib/3], linger: 0}
EOF
run renderfarm.overlay.deploy --limit one -e @"$place/deleted.yml"
grep -q 'release tool/1.9 is passed over, since it has no .ready: it is still being copied' "$place/log"
test -e "$place/deleted/gone/1"
rm -r "$place/software/gone" "$place/software/tool/1.9"
run renderfarm.overlay.deploy --limit one -e @"$place/deleted.yml" && exit 1
grep -q 'view deleted: these releases .* any more: gone/1; restore them, or take them out of the view' "$place/log"
test ! -e "$place/newest/gone"
test -e "$place/deleted/lib/3/name"
run renderfarm.overlay.remove --limit one -e @"$place/deleted.yml" -e overlay_view=deleted
rm "$place/manifests/gone/1."*
run renderfarm.overlay.deploy --limit one

# A developer writes to a view, which then stays at its generation until the changes may be discarded.
cat > "$place/writable.yml" <<EOF
overlay_views: [{name: writable, mountpoint: "$place/writable", releases: [tool/1.0], writable: scratch, scratch_size: 64M,
                 linger: 0}]
EOF
run renderfarm.overlay.deploy --limit one -e @"$place/writable.yml"
echo patched > "$place/writable/tool/1.0/name"
test "$(cat "$place/software/tool/1.0/name")" = tool/1.0
run renderfarm.overlay.deploy --limit one -e @"$place/writable.yml"
recap one 0
sed -i s,tool/1.0,tool/1.1, "$place/writable.yml"
run renderfarm.overlay.deploy --limit one -e @"$place/writable.yml" && exit 1
grep -q 'view writable stays as it is, since it was written to: .*discard_changes: true' "$place/log"
test "$(cat "$place/writable/tool/1.0/name")" = patched
run renderfarm.overlay.deploy --limit one -e @"$place/writable.yml" -e overlay_discard_changes=true
test "$(cd "$place/writable/tool" && echo ./*)" = "./1.1 ./stable"
run renderfarm.overlay.remove --limit one -e @"$place/writable.yml"

# A release that leaves a view lingers, equally in each batch of hosts, and leaves when its time is over.
cat > "$place/batches.yml" <<EOF
- hosts: one,two
  serial: 1
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: renderfarm.overlay.view
      vars:
        view_name: batches
        view_mountpoint: $place/batches-{{ inventory_hostname }}
        view_root: $place/software
        view_store: $place/manifests
        view_state_dir: $place/state-{{ inventory_hostname }}
        view_ready_marker: .ready
        view_scan_host: one
        view_query: newest(@)
        view_linger: 3
    - ansible.builtin.command: sleep 4
      when: inventory_hostname == 'one'
EOF
in_batches() {
    ansible-playbook -i "$place/inventory.yml" --forks 1 "$place/batches.yml" "$@" | tee "$place/log"
}

# batch HOST: print the generation that HOST shows.
batch() {
    basename "$(readlink "$place/state-$1/views/batches/current")"
}

in_batches
mkdir "$place/software/tool/1.2"
echo tool/1.2 > "$place/software/tool/1.2/name"
touch "$place/software/tool/1.2/.ready"
in_batches
test "$(grep -c 'view batches: no longer declared, and still shown: tool/1.1 until' "$place/log")" = 2
test "$(sort -u "$place/batches-one/tool/1.1/name" "$place/batches-two/tool/1.1/name")" = tool/1.1
test "$(cat "$place/batches-two/tool/1.2/name")" = tool/1.2
test "$(batch one)" = "$(batch two)"
in_batches --check --diff
grep -q '^-.*tool/1.1 until ' "$place/log"
in_batches
test ! -e "$place/batches-one/tool/1.1"
test ! -e "$place/batches-two/tool/1.1"
test "$(batch one)" = "$(batch two)"
rm -r "$place/software/tool/1.2" "$place/manifests/tool/1.2."*

# The next host resolves the views where the first one cannot, here since it has no software root.
cat > "$place/failover.yml" <<EOF
all:
  hosts:
    broken: {overlay_scan_root: "$place/nowhere"}
    working:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "$(command -v python)"
    overlay_become: false
    overlay_root: $place/software
    overlay_store: $place/manifests
    overlay_state_dir: $place/state-{{ inventory_hostname }}
    overlay_views: [{name: failover, mountpoint: "$place/{{ inventory_hostname }}", query: newest(@), linger: 0}]
EOF
ansible-playbook -i "$place/failover.yml" -e overlay_hosts=all renderfarm.overlay.deploy | tee "$place/log"
test -e "$place/broken/tool/1.1/name"
test -e "$place/working/tool/1.1/name"
ansible-playbook -i "$place/failover.yml" -e overlay_hosts=all renderfarm.overlay.remove

# An unknown key of a view is refused.
run renderfarm.overlay.deploy --limit one,two -e '{"overlay_views": [{"name": "newest", "mountpoint": "'"$place"'/newest",
    "query": "newest(@)", "at": "/"}]}' && exit 1
grep -q 'view newest: there is no key at' "$place/log"
run renderfarm.overlay.deploy --limit one -e '{"overlay_views": [{"name": "newest"}]}' && exit 1
grep -q 'view newest: mountpoint is missing: give it' "$place/log"
run renderfarm.overlay.deploy --limit one -e '{"overlay_views": []}' && exit 1
grep -q 'no host of this run declares a view' "$place/log"
# All problems of all hosts are reported at once, before anything is done, also a variable that means nothing.
run renderfarm.overlay.deploy -e overlay_format=erfs -e overlay_ready_maker=.ready -e overlay_view=nothing && exit 1
grep -q 'the declaration has 3 problems' "$place/log"
grep -q 'overlay_format must be auto, directory or erofs, not the text .erfs.: did you mean erofs?' "$place/log"
grep -q 'there is no variable overlay_ready_maker: did you mean overlay_ready_marker?' "$place/log"
grep -q 'overlay_view: no host of this run has a view nothing; the views are all, newest, old' "$place/log"

# A lock is written, and used without a look at the releases. What is not in it is named, and keeps nothing else.
run renderfarm.overlay.resolve -e overlay_lock_file="$place/lock.json"
grep -q '"release": "tool/1.1"' "$place/lock.json"
cat > "$place/locked.yml" <<EOF
- ansible.builtin.import_playbook: renderfarm.overlay.deploy
  vars:
    overlay_lock: "{{ lookup('ansible.builtin.file', '$place/lock.json') }}"
EOF
mkdir "$place/software/tool/1.3"
touch "$place/software/tool/1.3/.ready"
run "$place/locked.yml"
recap one 0
recap three 0
test ! -e "$place/newest/tool/1.3"
sed -i 's/"name": "old"/"name": "other"/' "$place/lock.json"
run "$place/locked.yml" && exit 1
grep -q 'the lock has no view old: resolve it again, or leave the view out' "$place/log"
grep -Eq '^one +: .* failed=1 ' "$place/log"
rmdir "$place/software/tool/1.3" 2> /dev/null || rm -r "$place/software/tool/1.3"

ansible -i "$place/inventory.yml" one -m renderfarm.overlay.overlay_info -a probe=false | tee "$place/log"
grep -qF "$place/newest" "$place/log"
ansible -i "$place/inventory.yml" one -m renderfarm.overlay.overlay_mount -a "path=$place/all state=unmounted" | tee "$place/log"
grep -q CHANGED "$place/log"
ansible -i "$place/inventory.yml" one -m renderfarm.overlay.overlay_mount -a "path=$place/all state=unmounted" | tee "$place/log"
grep -q SUCCESS "$place/log"

run renderfarm.overlay.remove --check
recap one 1
recap three 1
test "$(cat "$place/old/tool/1.0/name")" = tool/1.0

run renderfarm.overlay.remove
recap one 1
recap two 0
recap three 1
test ! -e "$place/newest"
test ! -e "$place/state/views/newest"
test -e "$place/manifests/lib/3.dump.gz"

run renderfarm.overlay.remove
recap one 0
recap two 0
recap three 0
