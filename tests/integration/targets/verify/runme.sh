#!/usr/bin/env bash
# Verify the views of several hosts with the playbook, on a schedule too, and repair what is damaged on one of them.

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
for host in one two three; do
    make_host "$host"
done

cat > "$place/inventory.yml" <<EOF
all:
  children:
    render:
      hosts: {one: , two: , three: }
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
EOF
cat > "$place/views.yml" <<EOF
overlay_root: $place/software
overlay_store: $place/manifests
overlay_state_dir: $place/here/state
overlay_ready_marker: .ready
overlay_format: directory
overlay_views:
  - name: all
    mountpoint: $place/here/all
    query: '@'
EOF

book() {
    ansible-playbook -i "$place/inventory.yml" --forks 4 "$@" | tee "$place/log"
}
verify() {
    book renderfarm.overlay.verify -e @"$place/views.yml" -e overlay_hosts=render -e overlay_verify_file="$place/verified.json" \
        -e overlay_metrics_file="$place/here/overlay.prom" "$@"
}
report() {
    book renderfarm.overlay.report -e overlay_state_dir="$place/here/state" -e overlay_hosts=render -e overlay_report_dir="$place/report"
}

# shows TEXT: check that the log has a line with TEXT.
shows() {
    grep -F -- "$1" "$place/log"
}

# metric HOST: print the number of problems in the metrics of a host.
metric() {
    awk '/^[a-z_]*view_verification_problems/ {print $2}' "$place/$1/overlay.prom"
}

# A farm without problems. Verifying changes nothing on its hosts.
book renderfarm.overlay.deploy -e @"$place/views.yml" -e overlay_hosts=render
verify -e overlay_level=open
shows '3 views on 3 hosts, '
shows 'no problems'
recap one 0
test "$(metric one)" = 0

# A fault on one host, with which the file reads as zeros.
broken=$(echo "$place"/two/state/views/all/generations/*/layer/tool/1.0/name)
python -c 'import os, sys; os.removexattr(sys.argv[1], "trusted.overlay.metacopy")' "$broken"
ANSIBLE_SHOW_CUSTOM_STATS=true verify && exit 1
shows 'all: redirect_without_metacopy on two'
shows '"damaged_hosts": '
recap two 0
test "$(metric one)-$(metric two)" = 0-1
python - "$place/verified.json" <<'EOF'
import json, sys
with open(sys.argv[1]) as stream:
    rows = json.load(stream)
assert [row["host"] for row in rows if not row["ok"]] == ["two"], rows
[problem] = [problem for row in rows for problem in row["problems"]]
assert (problem["path"], problem["code"]) == ("/tool/1.0/name", "redirect_without_metacopy"), problem
EOF
report
shows 'VERIFIED: 3 of 3 views since '
shows 'problems on 1 host:'
grep -q '^two,.*,1$' "$place/report/views.csv"

# It is repaired. Check mode only says so.
verify -e overlay_repair=true --check && exit 1
test "$(metric two)" = 1
verify -e overlay_repair=true
shows 'all: repaired redirect_without_metacopy on two'
recap two 1
recap one 0
test "$(on two cat "$place/here/all/tool/1.0/name")" = tool/1.0
test "$(metric two)" = 0

# A schedule draws a sample. It needs no declaration, and names the hosts on which nothing was verified.
rm -r "$place/software/tool/2.0"
undeclared() {
    book renderfarm.overlay.verify -e overlay_state_dir="$place/here/state" -e overlay_store="$place/manifests" "$@"
}
undeclared -e overlay_hosts=render:lost -e overlay_level=open -e overlay_sample=1000 && exit 1
shows 'all: missing_target on one, three, two'
shows 'not verified on gone: '
undeclared -e overlay_hosts=render -e overlay_sample=1000
shows 'no problems'
