#!/usr/bin/env bash
# From a trace to a view without the file server and back, with the playbook deploy.

set -euo pipefail

# What is mounted here is in a mount namespace, and vanishes with it.
if [ "${1:-}" != inside ]; then
    exec unshare --mount --propagation private "$0" inside
fi

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)
# Data images are built below this directory.
default=/var/lib/renderfarm-overlay
made=

clean() {
    awk -v place="$place/" -v default="$default" 'index($5, place) == 1 || $5 == default {print $5}' /proc/self/mountinfo |
        tac | xargs -r umount -l
    if [ -n "$made" ]; then
        rmdir "$default"
    fi
    rm -rf "$place"
}
trap clean EXIT

if [ ! -e "$default" ]; then
    mkdir "$default"
    made=1
fi
mount -t tmpfs -o mode=0700 tmpfs "$default"

# The file server exports a directory, and the host mounts it.
chmod 0755 "$place"
for release in tool/1.0 tool/1.1 lib/3; do
    mkdir -p "$place/export/$release/bin"
    for name in hot cold; do
        head -c 200000 /dev/urandom > "$place/export/$release/bin/$name"
    done
    touch "$place/export/$release/.ready"
done
mkdir "$place/manifests" "$place/root"
mount_root() {
    mount --bind "$place/export" "$place/root"
}
mount_root

cat > "$place/inventory.yml" <<END
all:
  hosts:
    one:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "$(command -v python)"
    overlay_become: false
    overlay_root: $place/root
    overlay_store: $place/manifests
    overlay_state_dir: $place/state
    overlay_ready_marker: .ready
    overlay_min_age: 0
    overlay_views:
      - name: software
        mountpoint: $place/software
        query: '@'
END

run() {
    ansible-playbook -i "$place/inventory.yml" -e overlay_hosts=all "$@" 2>&1 | tee "$place/log"
}

# recap CHANGED: check that no task failed, and that CHANGED tasks changed something on the host.
recap() {
    grep -Eq "^one +: .* changed=$1 +unreachable=0 +failed=0 " "$place/log"
}

# said TEXT: check that the run said TEXT, in lines of whatever length.
said() {
    tr -s '\n\\" ' ' ' < "$place/log" | grep -qF -- "$1"
}

# data_layers: print the number of data images, and then of other data layers, of the view.
data_layers() {
    awk -v at="$place/software" '$5 == at {line = $0} END {print line}' /proc/self/mountinfo |
        grep -oE 'datadir\+=[^,]*|::[^,: ]*' | awk '/\/state\/data\//{images++; next} {others++} END {print images + 0, others + 0}'
}

# same: check that the view has the content of the releases.
same() {
    (cd "$place/export" && find . -type f -print0 | xargs -0 sha256sum) > "$place/digests"
    (cd "$place/software" && sha256sum --check --quiet "$place/digests")
}

run renderfarm.overlay.deploy
recap 2
test "$(data_layers)" = '0 1'

# One release has a trace.
ansible one -i "$place/inventory.yml" -m renderfarm.overlay.access_trace \
    -a "path=$place/software store=$place/manifests command='cat $place/software/tool/1.1/bin/hot'" > "$place/log"
run renderfarm.overlay.deploy -e overlay_data_images=trace --check
recap 1
test ! -e "$place/manifests/.images"
test ! -e "$place/state/data"
run renderfarm.overlay.deploy -e overlay_data_images=trace
said '2 of its 3 releases have no data image, and are read from the software root: lib/3, tool/1.0: there is no trace of them'
test "$(data_layers)" = '1 1'
same
run renderfarm.overlay.deploy -e overlay_data_images=trace
recap 0

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# A budget that is too small for all leaves some out.
run renderfarm.overlay.deploy -e overlay_data_images=everything -e overlay_data_budget=500K
said 'of its releases have no data image on this host'
test "$(data_layers)" = '1 1'
same

# The lock names the images, so it is all that a host needs without the file server.
run renderfarm.overlay.resolve -e overlay_data_images=only -e overlay_lock_file="$place/lock.json"
grep -q '"kind": "everything"' "$place/lock.json"
run renderfarm.overlay.deploy -e overlay_data_images=only -e overlay_lock="{{ lookup('file', '$place/lock.json') }}"
test "$(data_layers)" = '3 0'
umount "$place/root"
mv "$place/manifests" "$place/no-manifests"
same
run renderfarm.overlay.deploy -e overlay_data_images=only -e overlay_lock="{{ lookup('file', '$place/lock.json') }}"
recap 0

# As after a restart of the host.
umount "$place/software"
run renderfarm.overlay.deploy -e overlay_data_images=only -e overlay_lock="{{ lookup('file', '$place/lock.json') }}"
recap 1
same
run renderfarm.overlay.report
said 'as declared'

# Without the file server the view does not go back.
mv "$place/no-manifests" "$place/manifests"
run renderfarm.overlay.deploy -e overlay_lock="{{ lookup('file', '$place/lock.json') }}" && exit 1
said "software root $place/root is empty: is it mounted?"
test "$(data_layers)" = '3 0'
mount_root
run renderfarm.overlay.deploy
recap 1
test "$(data_layers)" = '0 1'
same
test -z "$(find "$place/state/data" -name '*.erofs')"

# A wrong declaration stops before anything is changed.
run renderfarm.overlay.deploy -e overlay_data_images=all && exit 1
said 'overlay_data_images must be none, trace, everything or only'
run renderfarm.overlay.deploy -e overlay_state=absent
test ! -e "$place/state/views/software"
