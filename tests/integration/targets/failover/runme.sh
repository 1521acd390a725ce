#!/usr/bin/env bash
# No host of a deployment is a single point of failure, and options of ansible-playbook work or are refused in words.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)

clean() {
    awk -v place="$place/" 'index($5, place) == 1 {print $5}' /proc/self/mountinfo | tac | xargs -r umount -l
    rm -rf "$place"
}
trap clean EXIT

release() {
    mkdir -p "$place/software/$1"
    echo "$1" > "$place/software/$1/name"
    touch "$place/software/$1/.ready"
}
release tool/1.0
mkdir "$place/manifests" "$place/readonly" "$place/mountpoint"
mount --bind "$place/manifests" "$place/readonly"
mount -o remount,bind,ro "$place/readonly"

# The hosts are this machine, with a state directory and mountpoints of their own. The store is read-only on one of them,
# another one cannot mount the software root over its empty directory, and two do not answer.
cat > "$place/inventory.yml" <<EOF
all:
  children:
    up:
      hosts:
        unwritable: {overlay_scan_store: "$place/readonly"}
        one:
        two:
      vars: {ansible_connection: local}
    empty:
      hosts:
        bare: {overlay_root: "$place/mountpoint", overlay_root_name: "$place/software", overlay_source: "gone.invalid:/"}
      vars: {ansible_connection: local}
    gone:
      hosts:
        gone:
        lost: {overlay_source: "gone.invalid:/"}
      vars: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}
  vars:
    ansible_python_interpreter: "$(command -v python)"
    overlay_become: false
    overlay_root: $place/software
    overlay_store: $place/manifests
    overlay_state_dir: $place/state-{{ inventory_hostname }}
    overlay_ready_marker: .ready
    overlay_linger: 0
    host_install_packages: false
    overlay_views:
      - name: newest
        mountpoint: $place/{{ inventory_hostname }}/newest
        query: newest(@)
      - name: pinned
        mountpoint: $place/{{ inventory_hostname }}/pinned
        releases: [{release: tool/1.0, at: /}]
EOF

# deploy HOSTS OPTION...: deploy to HOSTS. The output is in the log.
deploy() {
    ansible-playbook -i "$place/inventory.yml" -e "overlay_hosts=$1" "${play:-renderfarm.overlay.deploy}" "${@:2}" 2>&1 |
        tee "$place/log"
}

# fails HOSTS OPTION...: the same for a deployment that has to fail.
fails() {
    if deploy "$@"; then
        echo "this deployment had to fail" >&2
        exit 1
    fi
}

# said TEXT: check that the log has TEXT, however its lines are broken.
said() {
    tr -s '\n\\" ' ' ' < "$place/log" | grep -qF -- "$1"
}

# shows HOST RELEASE: check that HOST shows just this release of tool, and the pinned one.
shows() {
    test "$(ls "$place/$1/newest/tool")" = "$2"
    test "$(cat "$place/$1/pinned/name")" = tool/1.0
}

unmount() {
    umount "$place/$1/newest" "$place/$1/pinned"
}

# Options that leave out all tasks do nothing, and options that leave out some are refused.
deploy up --tags nothing
said 'nothing is done: --tags or --skip-tags leave out the tasks of this playbook'
for task in 'Forget an earlier resolution' 'Resolve the views on the next host that can' 'Bring the views to their state' \
    'Fail if views could not be resolved'; do
    fails up --start-at-task "$task"
    said 'leave out --start-at-task'
done
test -z "$(ls -A "$place/manifests")"
test ! -e "$place/state-one"

# Tags of an import select the whole playbook.
cat > "$place/site.yml" <<EOF
- ansible.builtin.import_playbook: renderfarm.overlay.deploy
  tags: software
EOF
play=$place/site.yml deploy one --skip-tags software
test ! -e "$place/state-one"
play=$place/site.yml deploy one --tags software
shows one 1.0

# The first host does not answer, and the second cannot write the store.
release tool/1.1
fails gone,unwritable,one
shows unwritable 1.1
shows one 1.1
grep -Eq '^one +: .* failed=0 ' "$place/log"

# Neither of the first two can mount the software root: one does not answer, and the other has no server to mount it from.
release tool/1.1.1
fails lost,bare,one
shows one 1.1.1
grep -Eq '^one +: .* failed=0 ' "$place/log"

# With --limit, a host that is left out still scans if it is named, and else the first that is left.
release tool/1.2
deploy up --limit two -e overlay_scan_host=one
shows two 1.2
shows one 1.1.1
deploy up --limit one,two
shows one 1.2

# Only one host of a run resolves, whatever the strategy.
release tool/1.2.1
ANSIBLE_STRATEGY=free deploy one,two
test "$(grep -c '^scanning ' "$place/log")" = 1
test "$(grep -c 'run_once' "$place/log")" = 0
release tool/1.2.2
ANSIBLE_STRATEGY=host_pinned deploy one,two
test "$(grep -c '^scanning ' "$place/log")" = 1
shows two 1.2.2

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# No host can scan. Views that need nothing new are brought to their state. The others stay, and are mounted again.
release tool/1.4
unmount one
unmount two
fails one,two -e overlay_scan_store="$place/readonly"
said 'view newest: release tool/1.4 cannot be scanned'
said 'Read-only file system'
shows one 1.2.2
shows two 1.2.2
# What the first host could resolve is used if the next does not answer.
unmount unwritable
fails unwritable,gone
shows unwritable 1.1

# No host can resolve anything. A host that never showed a view waits for the next run.
unmount one
fails one,two -e overlay_scan_host=gone -e overlay_state_dir="$place/{{ 'new' if inventory_hostname == 'two' else 'state-one' }}"
said 'no host could resolve the views, so all hosts stay at what they showed last: gone: '
shows one 1.2.2
test ! -e "$place/new"
deploy one
shows one 1.4

# Without jmespath on the controller, queries cannot be resolved, and lists can.
mkdir "$place/without"
echo 'raise ImportError' > "$place/without/jmespath.py"
unmount one
PYTHONPATH=$place/without${PYTHONPATH:+:$PYTHONPATH} fails one
said 'needs jmespath on the controller: pip install jmespath'
shows one 1.4

# A failed host is in the report.
umount "$place/two/newest"
touch "$place/two/newest/precious"
fails one,two
said 'newest: mountpoint '
said '3 as declared, 0 held, 0 not declared, 0 drifted, 0 unreachable, 1 failed'
rm "$place/two/newest/precious"

deploy up -e overlay_state=absent
