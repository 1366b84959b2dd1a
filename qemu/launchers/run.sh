#!/bin/sh
# A launcher in shell: boots a disk, says where the registry is and which CA to trust, has a command pull, and ends the registry.
#
#   qemu/launchers/run.sh DISK COMMAND…     e.g. run.sh images.erofs sh -c 'curl --cacert "$REGISTRY_CA" "https://$REGISTRY/v2/_catalog"'
#
# The command gets REGISTRY (host and port), REGISTRY_CA (PEM) and REGISTRY_TRUST (files for every runtime). The exit status is the
# command's, or that of `localregistry run` (see its --help) where that failed.
set -eu

[ $# -ge 2 ] || { echo "usage: run.sh DISK COMMAND…" >&2; exit 2; }
disk=$1
shift
localregistry=${LOCALREGISTRY:-localregistry}

work=$(mktemp -d)
run=
finish() {
    if [ -n "$run" ]; then kill "$run" 2>/dev/null || true; wait "$run" || true; fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The file is there, whole, once the registry answers; until then `run` may end with an error, and has said which. Should this shell be
# killed, `run` is told to end.
setpriv --pdeathsig TERM "$localregistry" run "$disk" --quiet --json --ready-file "$work/ready" --trust "$work/trust" >"$work/line" &
run=$!
while [ ! -s "$work/ready" ]; do
    kill -0 "$run" 2>/dev/null || { status=0; wait "$run" || status=$?; run=; exit "$status"; }
    sleep 0.1
done
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$work/ready"; }
REGISTRY=$(field address) REGISTRY_CA=$(field ca) REGISTRY_TRUST=$(field trust)
export REGISTRY REGISTRY_CA REGISTRY_TRUST

pulled=0
"$@" || pulled=$?
# In order: transfers under way finish, and `run` exits 0 only where the guest says that all went well.
kill "$run"
status=0
wait "$run" || status=$?
run=
[ "$status" -eq 0 ] || exit "$status"
exit "$pulled"
