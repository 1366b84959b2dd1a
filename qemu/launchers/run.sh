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
# Descriptor 3 holds the lifeline's writing end. Nothing that this shell starts may inherit it: `run` ends when the last copy is closed,
# and so when this shell ends, however it does.
mkfifo "$work/lifeline"
exec 3<>"$work/lifeline"
run=
finish() {
    exec 3>&-
    if [ -n "$run" ]; then wait "$run" || true; fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The file is there, whole, once the registry answers; until then `run` may end with an error, and has said which.
"$localregistry" run "$disk" --end-with-stdin --quiet --json --ready-file "$work/ready" --trust "$work/trust" \
    <"$work/lifeline" >"$work/line" 3>&- &
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
# In order: transfers under way finish, and `run` exits 0 only where the guest says that all went well.
exec 3>&-
status=0
wait "$run" || status=$?
run=
[ "$status" -eq 0 ] || exit "$status"
exit "$pulled"
