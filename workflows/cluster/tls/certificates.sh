#!/bin/sh
# Make certificates for one cluster, and Dask's settings that use them.
#
#     certificates.sh FOLDER [FOLDER AS THE MACHINES OF THE CLUSTER SEE IT]
#
# Scheduler, workers and geoseg all use them:
#     export DASK_CONFIG=FOLDER
#     PROTOCOL=tls ../plain/scheduler.sh ADDRESS
#     ../plain/worker.sh tls://ADDRESS:8786 OWN_ADDRESS
#     geoseg detect ... --scheduler tls://ADDRESS:8786
# Who can read FOLDER can join the cluster and run code on it: it is made readable for you alone.
# The key of the authority is thrown away: for other certificates, make them all anew.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
seen=${2:-$folder}
[ ! -e "$folder/cluster.key" ] || { echo "$folder has a key already; name a new folder" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
days=${DAYS:-365}

# An authority, and one certificate signed by it for all: Dask asks who signed, not for whom
openssl req -x509 -newkey rsa:3072 -noenc -days "$days" -subj "/CN=geoseg cluster authority" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$work/ca.key" -out "$folder/ca.pem" 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }
openssl req -newkey rsa:3072 -noenc -subj "/CN=geoseg cluster" \
    -keyout "$folder/cluster.key" -out "$work/cluster.csr" 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }
printf 'extendedKeyUsage=serverAuth,clientAuth\n' >"$work/extensions"
openssl x509 -req -in "$work/cluster.csr" -CA "$folder/ca.pem" -CAkey "$work/ca.key" \
    -CAcreateserial -CAserial "$work/serial" -days "$days" -extfile "$work/extensions" -out "$folder/cluster.pem" 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }

cp "$here/../dask/geoseg.yaml" "$folder/geoseg.yaml"
cat >"$folder/tls.yaml" <<END
distributed:
  comm:
    default-scheme: tls
    require-encryption: true
    tls:
      ca-file: "$seen/ca.pem"
      scheduler: {cert: "$seen/cluster.pem", key: "$seen/cluster.key"}
      worker: {cert: "$seen/cluster.pem", key: "$seen/cluster.key"}
      client: {cert: "$seen/cluster.pem", key: "$seen/cluster.key"}
END
echo "made $folder for $days days; now on every machine: export DASK_CONFIG=$seen"
