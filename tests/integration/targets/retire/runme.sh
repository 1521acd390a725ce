#!/usr/bin/env bash
# Retire a release: refused while a host shows or uses it or does not answer, and done when nothing does.

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

for release in tool/1.0 tool/2.0; do
    mkdir -p "$place/software/$release"
    echo "$release" > "$place/software/$release/name"
    touch "$place/software/$release/.ready"
done
mkdir "$place/manifests" "$place/here"

# The hosts are mount namespaces of this machine, each with a directory of its own at the same path.
for host in one two; do
    mkdir "$place/$host"
    unshare --mount --propagation private sh -c "
        mount --bind $place/$host $place/here && touch $place/$host/up && exec sleep infinity" &
    keeper[$host]=$!
    until test -e "$place/$host/up"; do sleep 0.1; done
    printf '#!/bin/sh\nexec nsenter --target=%s --mount -- %s "$@"\n' "${keeper[$host]}" "$(command -v python)" \
        > "$place/$host/python"
    chmod 755 "$place/$host/python"
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
overlay_views:
  - name: all
    mountpoint: $place/here/all
    releases: [tool/1.0, tool/2.0]
YAML
sed 's|tool/1.0, tool/2.0|tool/2.0|' "$place/views.yml" > "$place/later.yml"

book() {
    ansible-playbook -i "$place/inventory.yml" --forks 3 "$@" | tee "$place/log"
}
shows() {
    grep -F -- "$1" "$place/log"
}
# refused ARGS...: check that the playbook fails and removes nothing.
refused() {
    book renderfarm.overlay.retire "$@" && exit 1
    shows 'nothing was removed, since 1 of 1 releases cannot be retired'
    test -e "$place/software/tool/1.0/.ready"
    test -e "$place/manifests/tool/1.0.json"
}

book renderfarm.overlay.deploy -e overlay_hosts=render -e @"$place/views.yml"
# The view is mounted on both hosts.
refused -e overlay_hosts=render -e @"$place/views.yml"
shows 'view all shows it on one, two'

# It is dropped from the views, and the process stays on the old one.
nsenter --target="${keeper[one]}" --mount -- sh -c "exec sleep infinity < $place/here/all/tool/1.0/name" &
keeper[user]=$!
until readlink "/proc/${keeper[user]}/fd/0" | grep -q tool/1.0/name; do sleep 0.1; done
refused -e overlay_hosts=render -e @"$place/later.yml" -e overlay_drain=true -e overlay_drain_seconds=1
shows "sleep (${keeper[user]})"
book renderfarm.overlay.usage -e overlay_hosts=render:lost -e @"$place/later.yml" -e '{"overlay_releases": ["tool/1.0"]}'
shows "sleep (${keeper[user]}) uses name (open) in view all"
shows 'UNKNOWN: 1 host (gone): unreachable'
grep -q "^tool/1.0,one,used,all,.*,${keeper[user]},sleep,open,name$" "$place/report/usage.csv"
kill "${keeper[user]}"
wait "${keeper[user]}" || true
unset 'keeper[user]'

# A host that does not answer counts as a user.
refused -e overlay_hosts=render:lost -e @"$place/later.yml"
shows 'it is unknown whether gone uses it: unreachable'

# Check mode tells everything, and changes nothing.
book renderfarm.overlay.retire -e overlay_hosts=render:lost -e @"$place/later.yml" -e overlay_unreachable_use=false \
    --check --diff
shows 'delete release tool/1.0 from the software root'
test -e "$place/software/tool/1.0/.ready"
test -e "$place/manifests/tool/1.0.json"

book renderfarm.overlay.retire -e overlay_hosts=render:lost -e @"$place/later.yml" -e overlay_unreachable_use=false
shows 'delete release tool/1.0 from the software root'
test "$(ls -A "$place/software/tool")" = 2.0
test ! -e "$place/manifests/tool/1.0.json"
# A second run changes nothing.
book renderfarm.overlay.retire -e overlay_hosts=render -e @"$place/later.yml" -e overlay_report_dir=
grep -q '^one .* changed=0 ' "$place/log"
