#!/usr/bin/env bash
# The playbooks as users call them: by name, with several hosts, with --check and --limit, and modules ad hoc.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)

clean() {
    awk -v place="$place/" 'index($5, place) == 1 {print $5}' /proc/self/mountinfo | tac | xargs -r umount -l
    rm -rf "$place"
}
trap clean EXIT

mkdir -p "$place/software/tool/1.0" "$place/software/tool/1.1" "$place/software/lib/3"
for release in tool/1.0 tool/1.1 lib/3; do
    echo "$release" > "$place/software/$release/name"
    touch "$place/software/$release/.ready"
done

# The hosts are one machine: what one has done, two finds done. Three has a view of its own.
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
    overlay_views:
      - name: newest
        mountpoint: $place/newest
        query: newest(@)
        links: [{path: tool/current, target: '1.1'}]
      - name: all
        mountpoint: $place/all
        query: '@'
EOF

run() {
    ansible-playbook -i "$place/inventory.yml" --forks 1 "$@" | tee "$place/log"
}

# recap HOST CHANGED: no task of the host failed, and so many changed something.
recap() {
    grep -Eq "^$1 +: .* changed=$2 +unreachable=0 +failed=0 " "$place/log"
}

run renderfarm.overlay.deploy --limit one --check
grep -q 'check mode ends here' "$place/log"
test ! -e "$place/manifests"
test ! -e "$place/state"

run renderfarm.overlay.deploy --limit one --check -e overlay_root="$place/nowhere" -e host_software_root=
grep -q "check mode ends here, since software root $place/nowhere does not exist" "$place/log"

# The folder; the scans, layer and mount of each view.
run renderfarm.overlay.deploy --limit one,two
recap one 7
recap two 0
test "$(grep -c 'release=tool/1.0\|item=tool/1.0' "$place/log")" = 1
test "$(cat "$place/newest/tool/1.1/name")" = tool/1.1
test ! -e "$place/newest/tool/1.0"
test "$(cat "$place/newest/tool/current/name")" = tool/1.1
test "$(cat "$place/all/tool/1.0/name")" = tool/1.0

run renderfarm.overlay.deploy
recap one 0
recap two 0
recap three 2
test "$(cat "$place/old/tool/1.0/name")" = tool/1.0
test ! -e "$place/old/lib"

run renderfarm.overlay.deploy --check --diff
recap one 0
recap two 0
recap three 0

# A key that a view does not have is not passed over.
run renderfarm.overlay.deploy --limit one,two -e '{"overlay_views": [{"name": "newest", "mountpoint": "'"$place"'/newest",
    "query": "newest(@)", "at": "/"}]}' && exit 1
grep -q 'a view has no key at' "$place/log"
run renderfarm.overlay.deploy --limit one -e '{"overlay_views": [{"name": "newest"}]}' && exit 1
grep -q 'a view has to have mountpoint' "$place/log"
run renderfarm.overlay.deploy --limit one -e '{"overlay_views": []}' && exit 1
grep -q 'overlay_views has to list the views' "$place/log"

ansible -i "$place/inventory.yml" one -m renderfarm.overlay.overlay_info -a probe=false | tee "$place/log"
grep -qF "$place/newest" "$place/log"
ansible -i "$place/inventory.yml" one -m renderfarm.overlay.overlay_mount -a "path=$place/all state=unmounted" | tee "$place/log"
grep -q CHANGED "$place/log"
ansible -i "$place/inventory.yml" one -m renderfarm.overlay.overlay_mount -a "path=$place/all state=unmounted" | tee "$place/log"
grep -q SUCCESS "$place/log"

run renderfarm.overlay.remove --check
recap one 2
recap three 1
test "$(cat "$place/old/tool/1.0/name")" = tool/1.0

run renderfarm.overlay.remove
recap one 4
recap two 0
recap three 2
test ! -e "$place/newest"
test ! -e "$place/state/views/newest"
test -e "$place/manifests/lib/3.dump.gz"

run renderfarm.overlay.remove
recap one 0
recap two 0
recap three 0
