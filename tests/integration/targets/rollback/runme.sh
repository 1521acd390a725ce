#!/usr/bin/env bash
# Deploy one image to several hosts, and roll back with the playbook.

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
release lib/3
mkdir "$place/manifests"

# The last host is not reachable.
for host in one two three; do
    make_host "$host"
done

cat > "$place/inventory.yml" <<EOF
all:
  children:
    render:
      hosts:
        one:
        two:
        three:
      vars:
        ansible_connection: local
        ansible_python_interpreter: $place/{{ inventory_hostname }}/python
    elsewhere:
      hosts:
        unreachable:
          ansible_connection: ssh
          ansible_host: 192.0.2.1
  vars:
    overlay_become: false
    overlay_root: $place/software
    overlay_store: $place/manifests
    overlay_state_dir: $place/here/state
    overlay_ready_marker: .ready
    overlay_build: central
    overlay_views:
      - name: all
        mountpoint: $place/here/all
        query: '@'
      - name: pinned
        mountpoint: $place/here/pinned
        releases: [tool/1.0]
EOF

run() {
    ansible-playbook -i "$place/inventory.yml" -e overlay_hosts=render "$@" | tee "$place/log"
}

# generation HOST: print the current generation of HOST.
generation() {
    basename "$(readlink "$place/$1/state/views/all/current")" | cut -d- -f1
}

# shown HOST: print the versions of tool in the view of HOST.
shown() {
    on "$1" ls "$place/here/all/tool" | paste -sd ' '
}

# On a fresh system, check mode reports where it ends and writes nothing, with and without manifests.
run renderfarm.overlay.deploy --check --limit one,two
grep -q 'check mode ends here, since these releases would have to be scanned first' "$place/log"
test -z "$(ls -A "$place/manifests")"
run renderfarm.overlay.deploy --limit one -e overlay_build=local
run renderfarm.overlay.remove --limit one
run renderfarm.overlay.deploy --check --diff --limit one,two
grep -q '^+.*tool/1.0' "$place/log"
test ! -e "$place/manifests/.images"
test ! -e "$place/two/state"

# Changed: the image of each view on the first host; the state directory, and the layer and mount of each view, on each host.
run renderfarm.overlay.deploy --limit one,two
recap one 2
recap two 1
test "$(find "$place/manifests/.images" -name '*.erofs.gz' | wc -l)" = 2
test "$(generation one)" = "$(generation two)"
test "$(on two cat "$place/here/all/tool/1.0/name")" = tool/1.0
first=$(generation one)

run renderfarm.overlay.deploy --limit one,two
recap one 0
recap two 0

release tool/2.0
run renderfarm.overlay.deploy
second=$(generation one)
grep -q "all  *$second  *3  as declared  *one, three, two" "$place/log"
test "$(generation three)" = "$second"
test "$(shown three)" = '1.0 2.0'

# Check mode shows which releases go, and changes nothing. Three has only one generation, and lists it.
rollback=(renderfarm.overlay.rollback -e overlay_view=all -e overlay_scan_host=unreachable)
run "${rollback[@]}" --check --diff && exit 1
grep -q '^- .*/tool/2.0' "$place/log"
grep -q "view all has no previous generation on this host; there are: $second" "$place/log"
test "$(generation one)" = "$second"
test "$(shown one)" = '1.0 2.0'

# In a real run, the other hosts continue. The unreachable host is not needed.
run "${rollback[@]}" && exit 1
recap one 1
recap two 1
grep -Eq '^three +: .* failed=1 ' "$place/log"
test "$(shown one)$(shown two)" = 1.01.0
test "$(shown three)" = '1.0 2.0'
test "$(generation two)" = "$first"
test "$(on one cat "$place/here/pinned/tool/1.0/name")" = tool/1.0

# What follows depends little on the version of ansible-core.
test ! -e ../setup_overlay/brief || exit 0

# A second rollback undoes the first, also with the blank answers of a survey. With a name, a second run changes nothing.
run "${rollback[@]}" --limit one,two -e overlay_generation= -e overlay_hold=
recap one 1
test "$(generation one)" = "$second"
run "${rollback[@]}" --limit one,two -e overlay_generation="$first"
recap one 1
test "$(generation one)" = "$first"
run "${rollback[@]}" --limit one,two -e overlay_generation="$first"
recap one 0
recap two 0

# The report names each generation with its hosts.
run "${rollback[@]}" --limit two
run "${rollback[@]}" --limit one,two
grep -q "$second  *1  held  *one" "$place/log"
grep -q "$first  *1  held  *two" "$place/log"

# A rollback holds: the next deployment leaves the view where it is. When the hold is lifted, all hosts show the declared
# releases again, from the existing image.
run renderfarm.overlay.deploy
recap one 0
recap two 0
recap three 0
grep -q 'all: held until the hold is lifted' "$place/log"
test "$(generation two)" = "$first"
run renderfarm.overlay.deploy -e overlay_lift_holds=true
recap one 0
recap two 1
recap three 0
test "$(generation two)" = "$second"

run "${rollback[@]}" -e overlay_view=some && exit 1
grep -q 'overlay_view: no host of this run has a view some; the views are all, pinned' "$place/log"

# An altered image is not installed.
release tool/3.0
run renderfarm.overlay.deploy --limit one
third=$(generation one)
printf altered | dd of="$place/manifests/.images/$third.erofs.gz" bs=1 seek=100 conv=notrunc
run renderfarm.overlay.deploy --limit one,two && exit 1
grep -q "$third.erofs.gz does not have the" "$place/log"
test "$(generation two)" = "$second"
test "$(shown two)" = '1.0 2.0'
# After its removal, the same image is built again.
rm "$place/manifests/.images/$third.erofs.gz"
run renderfarm.overlay.deploy --limit one,two
recap one 1
recap two 1
test "$(generation two)" = "$third"

run renderfarm.overlay.remove -e overlay_state=
test ! -e "$place/two/all"
test ! -e "$place/two/state/views/all"
test -e "$place/manifests/.images/$third.erofs.gz"
