#!/bin/sh
# Start the scheduler of a cluster on this machine. Stop it with Ctrl-C.
#
#     scheduler.sh ADDRESS [OPTIONS OF dask scheduler]
#
# ADDRESS is this machine's own address in the network of the workers; the scheduler listens there
# and nowhere else. Firewall: TCP port 8786 in, from workers and from where geoseg is started.
#
# PROTOCOL=tls encrypts and lets in only who has the certificates; ../tls makes them.
# Plain tcp is for networks where everybody is trusted: whoever reaches the port can run code here.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
address=$1
shift
export DASK_CONFIG="${DASK_CONFIG:-$here/../dask}"
# the dashboard is off, but its server of JSON pages cannot be: it stays on this machine
exec dask scheduler --protocol "${PROTOCOL:-tcp}" --host "$address" --port 8786 \
    --no-dashboard --dashboard-address 127.0.0.1:0 "$@"
