#!/usr/bin/env bash
# Deploy a view over several software roots with equal paths, switch it under a reader, roll it back and remove it.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)

clean() {
    touch "$place/stop"
    wait
    awk -v place="$place/" 'index($5, place) == 1 {print $5}' /proc/self/mountinfo | tac | xargs -r umount -l
    rm -rf "$place"
}
trap clean EXIT

mkdir -p "$place/manifests"
publish() {
    mkdir -p "$place/net/$1"
    echo "$1" > "$place/net/$1/name"
    touch "$place/net/$1/.ready"
}
# Volumes of one package each, a repository of rez with variants, and one with vendors.
for release in houdini/1.0 maya/1.0 nuke/1.0 rez/usd/1.0/python-3.9 rez/usd/1.0/python-3.11 vendors/adobe/substance/1.0; do
    publish "$release"
done
# A link to a release of another root is shown, and none that would replace what another root shows.
ln -s ../houdini/1.0 "$place/net/maya/current"
ln -s "$place/net/houdini/1.0" "$place/net/nuke/maya"
ln -s /etc "$place/net/nuke/etc"

cat > "$place/inventory.yml" <<EOF2
all:
  hosts:
    one:
  vars:
    ansible_connection: local
    ansible_python_interpreter: "$(command -v python)"
    overlay_become: false
    overlay_store: $place/manifests
    overlay_state_dir: $place/state
    overlay_ready_marker: .ready
    overlay_linger: 0
    overlay_min_age: 0
    overlay_roots:
      - {name: houdini, path: $place/net/houdini}
      - {name: maya, path: $place/net/maya}
      - {name: nuke, path: $place/net/nuke, at: ''}
      - {name: rez, path: $place/net/rez, pattern: '{package}/{version}/{variant}'}
      - {name: vendors, path: $place/net/vendors, pattern: '{vendor}/{package}/{version}'}
    overlay_views:
      - name: software
        mountpoint: $place/view
        query: '@'
EOF2

run() {
    ansible-playbook -i "$place/inventory.yml" -e overlay_hosts=all "$@" | tee "$place/log"
}

# shown PATH RELEASE: check that the file of a release is shown at a path of the view.
shown() {
    test "$(cat "$place/view/$1/name")" = "$2"
}

recap() {
    grep -Eq "^one +: .* changed=$1 +unreachable=0 +failed=0 " "$place/log"
}

run renderfarm.overlay.deploy
recap 2
shown houdini/1.0 houdini/1.0
shown maya/1.0 maya/1.0
shown 1.0 nuke/1.0
shown rez/usd/1.0/python-3.9 rez/usd/1.0/python-3.9
shown rez/usd/1.0/python-3.11 rez/usd/1.0/python-3.11
shown vendors/adobe/substance/1.0 vendors/adobe/substance/1.0
test -e "$place/manifests/maya/1.0.dump.gz"
test "$(readlink "$place/view/maya/current")" = ../houdini/1.0
shown maya/current houdini/1.0
test ! -e "$place/view/etc"
grep -q 'link nuke/maya is left out, since the view shows a release at its place maya' "$place/log"
grep -q 'link nuke/etc is passed over: it leads to /etc, which is outside of the software root' "$place/log"
run renderfarm.overlay.deploy
recap 0

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# A reader of all roots, while the view is switched and rolled back.
reader() {
    count=0
    while [ ! -e "$place/stop" ]; do
        for root in houdini maya; do
            read -r name < "$place/view/$root/1.0/name" || return 1
            [ "$name" = "$root/1.0" ] || return 1
            count=$((count + 1))
        done
    done
    echo "$count" > "$place/reads"
}
reader &
reading=$!
publish maya/2.0
run renderfarm.overlay.deploy
recap 2
shown maya/2.0 maya/2.0
run renderfarm.overlay.rollback
test ! -e "$place/view/maya/2.0"
run renderfarm.overlay.report
grep -q 'held' "$place/log"
touch "$place/stop"
wait "$reading"
test "$(cat "$place/reads")" -gt 10
rm "$place/stop"

# What cannot be is refused by name, before anything is changed.
run renderfarm.overlay.deploy -e overlay_data_images=trace && exit 1
grep -q 'data_images: trace is for views of one software root' "$place/log"
cat > "$place/merged.yml" <<EOF2
overlay_views:
  - name: software
    mountpoint: $place/view
    releases: [maya/2.0, {release: houdini/1.0, at: maya/2.0/plugins}]
EOF2
run renderfarm.overlay.deploy -e "@$place/merged.yml" && exit 1
grep -q 'These roots may have the same paths' "$place/log"
shown maya/1.0 maya/1.0

run renderfarm.overlay.remove
test ! -e "$place/view"
