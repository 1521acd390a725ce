#!/usr/bin/env bash
# A host pulls its lock from git, with the files and the command of examples/site.

set -euo pipefail

# What the examples mount is mounted in a mount namespace, and vanishes with it.
if [ "${1:-}" != inside ]; then
    exec unshare --mount --propagation private "$0" inside
fi

# ansible-test runs a copy of the tests alone, with the collection on this path.
site=${ANSIBLE_COLLECTIONS_PATH%%:*}/ansible_collections/renderfarm/overlay/examples/site
brief=$PWD/../setup_overlay/brief
place=$(mktemp -d /var/tmp/overlay-test-XXXXXX)
made=()

clean() {
    cd /
    awk '$5 ~ "^/(net|software|shows|var/lib/overlay-site|var/lib/renderfarm-overlay)(/|$)" {print $5}' /proc/self/mountinfo |
        tac | xargs -r umount -l
    # The mountpoints of the views.
    rmdir --ignore-fail-on-non-empty /software /shows/dragon/software /shows/dragon /shows "${made[@]}" 2> /dev/null || true
    rm -rf "$place"
}
trap clean EXIT

for directory in /net /var/lib/overlay-site /var/lib/renderfarm-overlay; do
    if [ ! -e "$directory" ]; then
        mkdir "$directory"
        made+=("$directory")
    fi
    mount -t tmpfs -o mode=0755 tmpfs "$directory"
done

release() {
    mkdir -p "/net/software/$1"
    echo "$1" > "/net/software/$1/name"
    touch "/net/software/$1/.ready"
}
mkdir /net/manifests
release houdini/20.5.410
release usd/25.05

# The units are valid, and the command is that of the service.
cp "$site"/systemd/overlay-pull.* "$place"
sed -i 's#^ExecStart=/usr/bin/ansible-pull#ExecStart=/bin/true#' "$place/overlay-pull.service"
systemd-analyze verify "$place/overlay-pull.service" "$place/overlay-pull.timer"
command=$(sed -n 's#^ExecStart=/usr/bin/##p' "$site/systemd/overlay-pull.service")

# The controller and the host use the repository as users do.
for name in $(compgen -e ANSIBLE_); do
    case $name in
        ANSIBLE_TEST_* | ANSIBLE_COLLECTIONS_PATH) ;;
        *) unset "$name" ;;
    esac
done
export GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0=test \
    GIT_CONFIG_KEY_1=user.email GIT_CONFIG_VALUE_1=test@example.com
git init --quiet --bare --initial-branch=main "$place/site.git"
git clone --quiet "$place/site.git" "$place/controller" 2> /dev/null
cp -R "$site/." "$place/controller"
cd "$place/controller"
git checkout --quiet -B main
commit() {
    git add --all
    git commit --quiet --message "$1"
    git push --quiet origin main
}
commit 'Begin the site'

pull() {
    (cd / && SITE_URL="file://$place/site.git" SITE_BRANCH=main eval "$command") 2>&1 | tee "$place/log"
}

# pulled CHANGED: check that the deployment of a pull succeeded, and that so many tasks changed something.
pulled() {
    grep -Eq "^$(hostname) +: .* changed=$1 +unreachable=0 +failed=0 " "$place/log"
}

# fails TEXT: check that a pull fails with TEXT.
fails() {
    if pull; then
        echo "this pull had to fail" >&2
        exit 1
    fi
    tr -s '\n\\" ' ' ' < "$place/log" | grep -qF -- "$1"
}

# A host that is not in the inventory is told.
fails 'leaves us with no hosts to target'
cat > inventory/this.yml <<EOF
canary:
  hosts:
    $(hostname):
      ansible_connection: local
      ansible_python_interpreter: "$(command -v python)"
EOF
ansible-playbook resolve.yml --limit "$(hostname)" -e overlay_become=false
grep -q '"release": "houdini/20.5.410"' views.lock.json
# It can be reviewed: each release is in a line of its own.
grep -Eq '^ +\{.*"release": "houdini/20.5.410"\},?$' views.lock.json
commit 'Show the first releases'

pull
pulled 1
test "$(cat /software/usd/25.05/name)" = usd/25.05
test "$(cat /shows/dragon/software/usd/current/name)" = usd/25.05
pull
pulled 0
test "$(git -C /var/lib/overlay-site rev-parse HEAD)" = "$(git rev-parse HEAD)"

# What follows depends little on the version of ansible-core.
test ! -e "$brief" || exit 0

# A release that is published waits for a lock that has it.
release houdini/20.5.487
pull
pulled 0
ansible-playbook resolve.yml --limit "$(hostname)" -e overlay_become=false
commit 'Show houdini 20.5.487'
pull
pulled 1
test "$(cat /software/houdini/20.5.487/name)" = houdini/20.5.487

# A broken lock changes nothing and is explained, whether it cannot be read or has other manifests.
sed -i.good 's/"format": 1/"format": one/' views.lock.json
mv views.lock.json.good "$place/good.json"
commit 'Break the lock'
fails 'overlay_lock: not a lock of views'
test "$(cat /software/houdini/20.5.487/name)" = houdini/20.5.487
sed 's/"generation": "......../"generation": "00000000/' "$place/good.json" > views.lock.json
commit 'Break it in another way'
fails 'but the lock has 00000000'
test "$(cat /software/houdini/20.5.487/name)" = houdini/20.5.487
grep -q 'but the lock has 00000000' /var/lib/renderfarm-overlay/views/software/status.json

# A git server that does not answer keeps no host from the lock that it has.
cp "$place/good.json" views.lock.json
commit 'Mend the lock'
pull
pulled 0
umount /software
mv "$place/site.git" "$place/away.git"
pull
pulled 1
test "$(cat /software/houdini/20.5.487/name)" = houdini/20.5.487

# What the canary hosts show for an hour goes to the others.
if ansible-playbook promote.yml --limit "$(hostname)" -e overlay_become=false -e overlay_canary="$(hostname)" | tee "$place/log"; then
    exit 1
fi
grep -q 'and overlay_promote_after is 3600' "$place/log"
touch --no-dereference --date '2 hours ago' /var/lib/renderfarm-overlay/views/*/current
rm views.lock.json
ansible-playbook promote.yml --limit "$(hostname)" -e overlay_become=false -e overlay_canary="$(hostname)"
ansible-playbook deploy.yml --limit "$(hostname)" -e overlay_become=false --check | tee "$place/log"
pulled 0
ansible-playbook deploy.yml --limit "$(hostname)" -e overlay_become=false -e overlay_state=absent
