#!/usr/bin/env bash
# Roll out in batches: with health checks, with tasks before and after each host, and with hosts that return.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)
# Health checks run as nobody.
chmod 755 "$place"
# shellcheck source=../setup_overlay/hosts.sh
. ../setup_overlay/hosts.sh

clean() {
    remove_hosts
    rm -rf "$place"
}
trap clean EXIT

hosts=(one two three four)
for host in "${hosts[@]}"; do
    make_host "$host"
done
release tool/1
mkdir "$place/manifests"

cat > "$place/inventory.yml" <<EOF
all:
  hosts:
    one:
    two:
    three:
    four:
  vars:
    ansible_connection: local
    ansible_python_interpreter: $place/{{ inventory_hostname }}/python
    overlay_become: false
    overlay_root: $place/software
    overlay_store: $place/manifests
    overlay_state_dir: $place/here/state
    overlay_ready_marker: .ready
    overlay_linger: 0
    overlay_views:
      - name: all
        mountpoint: $place/here/all
        query: newest(@)
        # It sees the new view at its mountpoint. A host is sick if its own directory says so.
        health_check: 'grep -q tool tool/*/name && test ! -e $place/here/sick'
EOF

run() {
    ansible-playbook -i "$place/inventory.yml" -e overlay_hosts=all "$@" | tee "$place/log"
}

# shown HOST...: print the version of tool that each host shows.
shown() {
    for host; do
        on "$host" ls "$place/here/all/tool"
    done | paste -sd ' '
}

run renderfarm.overlay.deploy
test "$(shown "${hosts[@]}")" = '1 1 1 1'

# A host that is sick keeps what it has, and no further batch is changed.
release tool/2
touch "$place/two/sick"
run renderfarm.overlay.deploy -e overlay_serial=2 && exit 1
grep -q 'failed its health check, and it still shows generation' "$place/log"
test "$(shown "${hosts[@]}")" = '2 1 1 1'
# Also the record of the current generation has not changed, so the next run tries again, and fails again.
run renderfarm.overlay.deploy --limit one,two && exit 1
recap one 0
test "$(shown one two)" = '2 1'
# With another percentage the rollout goes on. 0 is a percentage, and blank is the default.
run renderfarm.overlay.deploy -e overlay_serial=2 -e '{"overlay_max_fail_percentage": 0}' && exit 1
test "$(shown "${hosts[@]}")" = '2 1 1 1'
# It also goes on, and the report is made, if the first host of the second batch fails.
rm "$place/two/sick"
touch "$place/three/sick"
run renderfarm.overlay.deploy -e overlay_serial=2 -e overlay_max_fail_percentage=50 && exit 1
test "$(shown "${hosts[@]}")" = '2 2 1 2'
grep -q '3 as declared, 0 held, 0 not declared, 0 drifted, 0 unreachable, 1 failed' "$place/log"
rm "$place/three/sick"
run renderfarm.overlay.deploy -e overlay_serial=2
recap three 1
test "$(shown "${hosts[@]}")" = '2 2 2 2'

# The tasks before and after a host run around its change. What is published meanwhile is not shown by any host.
cat > "$place/before.yml" <<EOF
- ansible.builtin.shell: |
    echo "before {{ inventory_hostname }} \$(ls $place/here/all/tool)" >> $place/order
    mkdir -p $place/software/tool/9 && touch $place/software/tool/9/.ready
EOF
cat > "$place/after.yml" <<EOF
- name: Start a render
  ansible.builtin.shell: |
    echo "after {{ inventory_hostname }} \$(ls $place/here/all/tool) {{ overlay_host_failed }}" >> $place/order
    test ! -e $place/here/broken
EOF
hooks=(-e overlay_before_host="$place/before.yml" -e overlay_after_host="$place/after.yml" -e overlay_serial=1)
release tool/3
run renderfarm.overlay.deploy "${hooks[@]}" --check
test ! -e "$place/order"
run renderfarm.overlay.deploy "${hooks[@]}"
test "$(shown "${hosts[@]}")" = '3 3 3 3'
diff - "$place/order" <<EOF
before one 2
after one 3 False
before two 2
after two 3 False
before three 2
after three 3 False
before four 2
after four 3 False
EOF
rm -r "$place/software/tool/9" "$place/order"

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# They do not run where nothing changes.
run renderfarm.overlay.deploy "${hooks[@]}"
recap one 0
test ! -e "$place/order"

# A host whose tasks fail afterwards returns to what it showed, and stays there until something else is declared.
release tool/4
touch "$place/one/broken"
run renderfarm.overlay.deploy "${hooks[@]}" && exit 1
grep -q "task 'Start a render' of overlay_after_host failed, so the host was returned" "$place/log"
test "$(shown "${hosts[@]}")" = '3 3 3 3'
rm -r "$place/one/broken" "$place/software/tool/9"
run renderfarm.overlay.deploy
recap one 0
recap two 1
test "$(shown "${hosts[@]}")" = '3 4 4 4'
grep -q '  all: held until the hold is lifted: the tasks after the change failed: ' "$place/log"
release tool/5
run renderfarm.overlay.deploy
test "$(shown "${hosts[@]}")" = '5 5 5 5'

# The tasks after a host also run if a view failed, and know it.
release tool/6
rm -f "$place/order"
touch "$place/one/sick"
run renderfarm.overlay.deploy "${hooks[@]}" && exit 1
diff - "$place/order" <<EOF
before one 5
after one 5 True
EOF
rm "$place/one/sick"

# Wrong paths of tasks are refused before anything is done.
run renderfarm.overlay.deploy -e overlay_before_host=before.yml -e overlay_after_host=/nowhere.yml && exit 1
grep -q "overlay_before_host must be an absolute path, such as {{ playbook_dir }}/drain.yml, not 'before.yml'" "$place/log"
grep -q 'overlay_after_host: there is no file /nowhere.yml' "$place/log"

run renderfarm.overlay.remove
