#!/usr/bin/env bash
# Bring hosts to what canary hosts show, and refuse to if there is a reason.

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
release lib/3
mkdir "$place/manifests"

# The hosts are this machine, with a state directory and mountpoints of their own.
cat > "$place/inventory.yml" <<EOF
all:
  children:
    canary:
      hosts: {c1: , c2: }
    gone:
      hosts:
        gone: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}
    rest:
      hosts: {r1: , r2: }
  vars:
    ansible_connection: local
    ansible_python_interpreter: "$(command -v python)"
    overlay_become: false
    overlay_root: $place/software
    overlay_store: $place/manifests
    overlay_state_dir: $place/state-{{ inventory_hostname }}
    overlay_ready_marker: .ready
    overlay_views:
      - name: newest
        mountpoint: $place/{{ inventory_hostname }}/newest
        query: newest(@)
      - name: image
        mountpoint: $place/{{ inventory_hostname }}/image
        query: newest(@)
        build: central
        linger: 0
      - name: merged
        mountpoint: $place/{{ inventory_hostname }}/merged
        releases: [{release: lib/3, at: /}]
EOF

run() {
    ansible-playbook -i "$place/inventory.yml" "$@" 2>&1 | tee "$place/log"
}
deploy() {
    run renderfarm.overlay.deploy -e overlay_hosts="$1" "${@:2}"
}
promote() {
    run renderfarm.overlay.promote -e overlay_canary=canary -e overlay_hosts=rest "$@"
}

# said TEXT: check that the log has TEXT, however its lines are broken.
said() {
    tr -s '\n\\" ' ' ' < "$place/log" | grep -qF -- "$1"
}

# unchanged: check that no host changed.
unchanged() {
    test "$(grep -Ec ' changed=[1-9]' "$place/log")" = 0
}

# refused TEXT OPTION...: check that a promotion is refused with TEXT, and that no host changed.
refused() {
    if promote "${@:2}"; then
        echo "this promotion had to be refused" >&2
        exit 1
    fi
    said "$1"
    unchanged
}

# shows HOST RELEASE...: check which releases of tool HOST shows.
shows() {
    test "$(cd "$place/$1/newest/tool" && echo *)" = "${*:2}"
    test "$(ls "$place/$1/image/tool")" = "${*: -1}"
    test "$(cat "$place/$1/merged/name")" = lib/3
}

if run renderfarm.overlay.promote -e overlay_hosts=rest; then exit 1; fi
said 'overlay_canary must name the canary hosts'
refused 'view image: it is not mounted'

deploy canary,rest
shows c1 1.0
shows r2 1.0
release tool/1.1
deploy canary
shows c2 1.0 1.1
release tool/1.2

# Nothing but what the canary hosts show goes to the others, with what lingers there.
refused 'and overlay_promote_after is 3600' -e overlay_promote_after=3600
promote --check --diff
grep -q '^+.*tool/1.1' "$place/log"
shows r1 1.0
promote -e overlay_lock_file="$place/lock.json"
shows r1 1.0 1.1
shows r2 1.0 1.1
grep -Eq '^ +\{"release": "tool/1.0", "until": "[^"]+"\},?$' "$place/lock.json"
test "$(grep -c '"image_digest": "sha256:' "$place/lock.json")" = 1
test "$(grep -c 'tool/1.2' "$place/lock.json")" = 0
for view in newest image merged; do
    test "$(basename "$(readlink "$place/state-r1/views/$view/current")")" = \
        "$(basename "$(readlink "$place/state-c1/views/$view/current")")"
done
promote
unchanged

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# An extra variable beats the lock of the canary hosts, so it must be the same one.
cat > "$place/given.yml" <<EOF
overlay_lock: $(tr -d '\n' < "$place/lock.json")
EOF
promote -e @"$place/given.yml"
unchanged
sed -i 's/"generation": "......../"generation": "00000000/' "$place/given.yml"
refused 'overlay_lock is given as an extra variable, and is not what the canary hosts show' -e @"$place/given.yml"

# Canary hosts that were not read.
deploy canary
refused '2 of 3 canary hosts were read, and 3 have to be; these are unreachable, or --limit leaves them out: gone' \
    -e overlay_canary=canary,gone
promote -e overlay_canary=canary,gone -e overlay_canary_min=2 -e overlay_view=newest
test "$(cd "$place/r1/newest/tool" && echo *)" = '1.0 1.1 1.2'
test ! -e "$place/r1/image/tool/1.2"
refused '0 of 2 canary hosts were read' --limit rest

# Canary hosts that differ, are held, and have failed.
release tool/1.3
deploy c1
run renderfarm.overlay.rollback -e overlay_hosts=c2 -e overlay_view=newest
umount "$place/c2/merged"
refused 'view image: hosts show different generations'
said 'view newest: a rollback holds it at generation'
said 'view merged: it is not mounted: deploy to the canary hosts first (on c2)'
deploy canary -e overlay_lift_holds=true
promote
shows r2 1.0 1.1 1.2 1.3

deploy canary,rest -e overlay_state=absent
