#!/bin/sh
# Start workers on this machine; they may come and go while a run goes on. Stop with Ctrl-C.
#
#     worker.sh SCHEDULER ADDRESS [OPTIONS OF dask worker]
#
# SCHEDULER is tcp://HOST:8786 or tls://HOST:8786 (then with DASK_CONFIG, see ../tls); ADDRESS is
# this machine's own address in that network. Firewall: TCP 40000-40199 in, from the scheduler and
# from the other workers; 8786 out.
#
# A CPU machine: a process per physical core, such as --nworkers 8.
# A GPU machine: this script once per GPU: CUDA_VISIBLE_DEVICES=0 worker.sh ... --resources GPU=1
# --lifetime 2h --lifetime-stagger 10m: says goodbye by then; what it had in hand others do again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
scheduler=$1 address=$2
shift 2
export DASK_CONFIG="${DASK_CONFIG:-$here/../dask}"
# --nthreads 2: one thread reads its supertile while the network looks at the other's
# --nanny: a keeper starts the worker again that a tile has killed; it also sets OMP_NUM_THREADS=1
exec dask worker "$scheduler" --protocol "${scheduler%%:*}" --host "$address" --nthreads 2 --nanny \
    --worker-port 40000:40099 --nanny-port 40100:40199 \
    --no-dashboard --dashboard-address 127.0.0.1:0 "$@"
