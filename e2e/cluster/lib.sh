# shellcheck shell=bash
# What the commands of this folder share: where things lie, and how to reach the node.
#
#   LENO_CLUSTER        the cluster's name, for more than one at a time (default: leno)
#   LENO_CLUSTER_CACHE  where built programs are kept (default: target/cluster of this checkout)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # used by those who source this
root=$(cd "$here/../.." && pwd)
# shellcheck disable=SC2034
cache=${LENO_CLUSTER_CACHE:-$root/target/cluster}
name=${LENO_CLUSTER:-leno}
# All that a running cluster owns; `down` removes it.
state=/var/lib/leno-cluster/$name
# The cgroup, in every hierarchy, that its Pods are in.
# shellcheck disable=SC2034
cgroup=leno-cluster-$name
export PATH=$PATH:/usr/sbin:/sbin

say() {
    echo "$(basename "$0"): $*"
}

die() {
    say "$*" >&2
    exit 1
}

# Seen from outside, the process that everything in the node descends from; nothing if there is none.
node_pid() {
    local keeper
    keeper=$(cat "$state/keeper.pid" 2>/dev/null) || return 1
    # A keeper of an earlier boot may have left its number to another process.
    grep -qz "/e2e/cluster/node$" "/proc/$keeper/cmdline" 2>/dev/null || return 1
    tr -d ' ' <"/proc/$keeper/task/$keeper/children"
}

# Runs a command inside the node.
in_node() {
    local pid
    pid=$(node_pid) || die "the cluster $name is not up: e2e/cluster/up"
    nsenter --target "$pid" --net --mount --pid --uts --ipc -- "$@"
}

ctr() {
    in_node ctr --namespace k8s.io "$@"
}

kubectl() {
    "$state/bin/kubectl" --kubeconfig "$state/kubeconfig" --request-timeout 20s "$@"
}

# eventually SECONDS COMMAND...: runs it until it succeeds, or says why it did not.
eventually() {
    local deadline=$((SECONDS + $1)) output
    shift
    until output=$("$@" 2>&1); do
        if ((SECONDS >= deadline)); then
            echo "$output" >&2
            return 1
        fi
        sleep 0.2
    done
}
