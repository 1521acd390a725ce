# shellcheck shell=bash
# Hosts for tests in shell: mount namespaces of this machine. Source it with "place", a directory of the test, and call
# make_host for each. A host has its own directory at $place/here, which is $place/HOST outside, and shares all else.

declare -A keeper
: "${place:?}"

# make_host HOST: make a host. $place/HOST/python is its interpreter.
make_host() {
    mkdir -p "$place/here" "$place/$1"
    unshare --mount --propagation private sh -c "
        mount --bind $place/$1 $place/here && touch $place/$1/up && exec sleep infinity" &
    keeper[$1]=$!
    until test -e "$place/$1/up"; do sleep 0.1; done
    printf '#!/bin/sh\nexec nsenter --target=%s --mount -- %s "$@"\n' "${keeper[$1]}" "$(command -v python)" \
        > "$place/$1/python"
    chmod 755 "$place/$1/python"
}

# on HOST COMMAND...: run COMMAND in the mount namespace of HOST.
on() {
    nsenter --target="${keeper[$1]}" --mount -- "${@:2}"
}

# remove_hosts: end the hosts, with their mounts.
remove_hosts() {
    kill "${keeper[@]}"
    wait
}

# release NAME: publish a release below $place/software.
release() {
    mkdir -p "$place/software/$1"
    echo "$1" > "$place/software/$1/name"
    touch "$place/software/$1/.ready"
}

# recap HOST CHANGED: check in $place/log that no task of HOST failed and that CHANGED tasks changed something.
recap() {
    grep -Eq "^$1 +: .* changed=$2 +unreachable=0 +failed=0 " "$place/log"
}
