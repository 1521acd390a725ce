#!/usr/bin/env bash
# Retire a release: refused while a host shows or uses it or does not answer, and done when nothing does.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)
# shellcheck source=../setup_overlay/hosts.sh
. ../setup_overlay/hosts.sh

clean() {
    remove_hosts
    rm -rf "$place"
}
trap clean EXIT

release tool/1.0
release tool/2.0
mkdir "$place/manifests"
for host in one two; do
    make_host "$host"
done

cat > "$place/inventory.yml" <<YAML
all:
  children:
    render:
      hosts:
        one:
        two:
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
YAML
cat > "$place/views.yml" <<YAML
overlay_root: $place/software
overlay_store: $place/manifests
overlay_state_dir: $place/here/state
overlay_ready_marker: .ready
overlay_linger: 0
overlay_retire: [tool/1.0]
overlay_delete_release: true
overlay_report_dir: $place/report
overlay_build: central
overlay_views:
  - name: all
    mountpoint: $place/here/all
    releases: [tool/1.0, tool/2.0]
YAML
cat > "$place/spare.yml" <<YAML
- hosts: one
  gather_facts: false
  tasks:
    - renderfarm.overlay.metadata_layer:
        name: spare
        releases: [{manifest: $place/manifests/tool/2.0.dump.gz, at: elsewhere}]
        image_store: $place/manifests/.images
        state_dir: $place/here/spare
YAML
sed 's|tool/1.0, tool/2.0|tool/2.0|' "$place/views.yml" > "$place/later.yml"

book() {
    ansible-playbook -i "$place/inventory.yml" --forks 3 "$@" | tee "$place/log"
}
shows() {
    grep -F -- "$1" "$place/log"
}
# kept: check that nothing of the release was removed.
kept() {
    test -e "$place/software/tool/1.0/.ready"
    test -e "$place/manifests/tool/1.0.json"
}

book renderfarm.overlay.deploy -e overlay_hosts=render -e @"$place/views.yml"

# The release is dropped from the views, and a process stays on the old one. A host that does not answer counts as a user.
# Not with "on", since the PID has to be that of the process.
nsenter --target="${keeper[one]}" --mount -- sh -c "exec sleep infinity < $place/here/all/tool/1.0/name" &
keeper["user"]=$!
until readlink "/proc/${keeper[user]}/fd/0" | grep -q tool/1.0/name; do sleep 0.1; done
book renderfarm.overlay.retire -e overlay_hosts=render:lost -e @"$place/later.yml" -e overlay_drain=true \
    -e overlay_drain_seconds=1 && exit 1
shows 'nothing was removed, since 1 of 1 releases cannot be retired'
shows "sleep (${keeper[user]})"
shows 'it is unknown whether gone uses it'
kept
book renderfarm.overlay.retire -e overlay_hosts=render -e @"$place/later.yml" --limit two && exit 1
shows '--limit leaves out hosts'
kept

book renderfarm.overlay.usage -e overlay_hosts=render:lost -e @"$place/later.yml" -e '{"overlay_releases": ["tool/1.0"]}'
shows "sleep (${keeper[user]}) uses name (open) in view all"
shows 'UNKNOWN: 1 host (gone): unreachable'
grep -q "^tool/1.0,one,used,all,.*,${keeper[user]},sleep,open,name$" "$place/report/usage.csv"
grep -q "sleep (${keeper[user]})" "$place/report/views.html"
kill "${keeper[user]}"
wait "${keeper[user]}" || true
unset 'keeper[user]'

# Check mode tells everything, and changes nothing.
book renderfarm.overlay.retire -e overlay_hosts=render:lost -e @"$place/later.yml" -e overlay_unreachable_use=false \
    --check --diff
shows 'delete release tool/1.0 from the software root'
shows '"software_root": "present"'
kept

book renderfarm.overlay.retire -e overlay_hosts=render:lost -e @"$place/later.yml" -e overlay_unreachable_use=false
shows 'delete release tool/1.0 from the software root'
test "$(ls -A "$place/software/tool")" = 2.0
test -z "$(find "$place/manifests/tool" -name '*1.0*')"

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# Of several software roots, that of the release is meant, although they have equal paths.
for root in maya houdini; do
    release "../$root/1.0"
done
cat > "$place/roots.yml" <<YAML
overlay_roots:
  - {name: maya, path: $place/maya, ready_marker: .ready}
  - {name: houdini, path: $place/houdini, ready_marker: .ready}
overlay_store: $place/volumes
overlay_state_dir: $place/here/state
overlay_delete_release: true
YAML
mkdir "$place/volumes"
cat > "$place/scan.yml" <<YAML
- hosts: one
  gather_facts: false
  tasks:
    - renderfarm.overlay.release_manifest:
        root: $place/{{ item }}
        root_name: "{{ item }}"
        prefix: "{{ item }}"
        store: $place/volumes
        releases: ["{{ item }}/1.0"]
      loop: [maya, houdini]
YAML
book "$place/scan.yml"
nsenter --target="${keeper[two]}" --mount -- sh -c "exec sleep infinity < $place/maya/1.0/name" &
keeper["user"]=$!
until readlink "/proc/${keeper[user]}/fd/0" | grep -q maya/1.0/name; do sleep 0.1; done
book renderfarm.overlay.retire -e overlay_hosts=render -e @"$place/roots.yml" \
    -e '{"overlay_retire": ["houdini/1.0", "maya/1.0"]}' && exit 1
shows 'nothing was removed, since 1 of 2 releases cannot be retired'
shows "sleep (${keeper[user]})"
book renderfarm.overlay.retire -e overlay_hosts=render -e @"$place/roots.yml" -e '{"overlay_retire": ["houdini/1.0"]}'
test ! -e "$place/houdini/1.0"
test ! -e "$place/volumes/houdini"
test -e "$place/maya/1.0/.ready"
test -e "$place/volumes/maya/1.0.json"
kill "${keeper[user]}"
wait "${keeper[user]}" || true
unset 'keeper[user]'

# An image that no host has is removed from the store, and that of the view stays.
images=$place/manifests/.images
book "$place/spare.yml"
test "$(find "$images" -name '*.json' | wc -l)" = 2
old=$(basename "$(find "$images" -name '*.json' -newer "$place/report/usage.csv")" .json)
book renderfarm.overlay.prune -e overlay_hosts=render -e @"$place/later.yml" -e overlay_prune_keep=0 -e overlay_prune_min_age=0
shows "remove image $old from the image store, since no host needs it"
test -z "$(find "$images" -name "$old*")"
test "$(find "$images" -name '*.json' | wc -l)" = 1
