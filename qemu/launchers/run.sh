#!/bin/sh
# A launcher in shell: boots a disk, runs a command that pulls from the registry, and shuts the registry down.
#
#   qemu/launchers/run.sh DISK COMMAND…     e.g. run.sh images.erofs sh -c 'curl --cacert "$REGISTRY_CA" "https://$REGISTRY/v2/_catalog"'
#
# The command has REGISTRY (host and port), REGISTRY_CA (PEM) and REGISTRY_TRUST (files for every runtime) in its environment. The exit
# status is the command's, or that of `localregistry run` (see its --help) if that failed.
set -eu

[ $# -ge 2 ] || { echo "usage: run.sh DISK COMMAND…" >&2; exit 2; }
disk=$1
shift
localregistry=${LOCALREGISTRY:-localregistry}

work=$(mktemp -d)
# Descriptor 3 is the writing end of the pipe that is the standard input of `run`. No other process may inherit it: `run` ends when the
# last copy is closed, and so when this shell ends in any way.
mkfifo "$work/stdin"
exec 3<>"$work/stdin"
run=
finish() {
    exec 3>&-
    if [ -n "$run" ]; then wait "$run" || true; fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The ready file appears atomically once the registry is ready. If `run` fails before, it has printed the error.
"$localregistry" run "$disk" --end-with-stdin --quiet --json --ready-file "$work/ready" --trust "$work/trust" \
    <"$work/stdin" >"$work/line" 3>&- &
run=$!
while [ ! -s "$work/ready" ]; do
    kill -0 "$run" 2>/dev/null || { status=0; wait "$run" || status=$?; run=; exit "$status"; }
    sleep 0.1 3>&-
done
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$work/ready"; }
REGISTRY=$(field address) REGISTRY_CA=$(field ca) REGISTRY_TRUST=$(field trust)
export REGISTRY REGISTRY_CA REGISTRY_TRUST

pulled=0
"$@" 3>&- || pulled=$?
# Graceful: transfers under way finish, and `run` exits with 0 only if the guest reports a clean shutdown.
exec 3>&-
status=0
wait "$run" || status=$?
run=
[ "$status" -eq 0 ] || exit "$status"
exit "$pulled"
