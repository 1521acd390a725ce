#!/usr/bin/env bash
# Move directories out of the lower layer of an overlay with the playbook.

set -euo pipefail

place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)

clean() {
    umount -l "$place/view" || true
    rm -rf "$place"
}
trap clean EXIT

mkdir -p "$place"/{lower/tools/{a/bin,b},upper,work,view}
echo a > "$place/lower/tools/a/bin/tool"
echo b > "$place/lower/tools/b/tool"
mount -t overlay -o "lowerdir=$place/lower,upperdir=$place/upper,workdir=$place/work,metacopy=on,redirect_dir=on,index=on" \
    overlay "$place/view"

cat > "$place/moves.yml" <<EOF
overlay_become: false
overlay_moves:
  - {source: $place/view/tools/a, destination: $place/view/local/one}
  - {source: $place/view/tools/b, destination: $place/view/local/two}
EOF

run() {
    ansible-playbook -i localhost, -c local -e ansible_python_interpreter="$(command -v python)" \
        -e overlay_hosts=localhost renderfarm.overlay.move "$@" | tee "$place/log"
}

# recap CHANGED: check that no task failed and that CHANGED tasks changed something.
recap() {
    grep -Eq "^localhost +: .* changed=$1 +unreachable=0 +failed=0 " "$place/log"
}

run -e "@$place/moves.yml" --check --diff
recap 1
test -e "$place/view/tools/a/bin/tool"
test ! -e "$place/view/local"

run -e "@$place/moves.yml"
recap 1
test "$(cat "$place/view/local/one/bin/tool" "$place/view/local/two/tool")" = "$(printf 'a\nb')"
test -z "$(ls "$place/view/tools")"
# No content was copied, and the lower layer is unchanged.
test "$(stat -c %b "$place/upper/local/one/bin/tool")" -lt 16
test "$(cat "$place/lower/tools/a/bin/tool")" = a

run -e "@$place/moves.yml"
recap 0
run -e "@$place/moves.yml" --check
recap 0

run && exit 1
grep -q 'overlay_moves must be a list of directories to move' "$place/log"
run -e "{overlay_become: false, overlay_moves: [{source: $place/lower/tools/a, destination: $place/lower/c}]}" && exit 1
grep -q 'is not in an overlay with an upper layer' "$place/log"
test -e "$place/lower/tools/a"
