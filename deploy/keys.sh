#!/usr/bin/env bash
# Makes what a SuperLink with TLS and its SuperNodes need: a certificate authority, the server's certificate, and a key
# pair for every client.
#
#   bash keys.sh FOLDER HOSTS NAME...     e.g.  bash keys.sh keys superlink.example.org,10.0.0.5 client-0 client-1
#
# HOSTS are names and IPv4 addresses, with commas, under which SuperNodes and people reach the SuperLink; localhost and
# 127.0.0.1 are added. FOLDER has to be new. Keys are readable by who runs this alone. DAYS (default 365) is how long
# certificates hold. What ends in .key, and files without an ending, are secrets: each client's goes to its machine.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "found $# arguments, allowed: keys.sh FOLDER HOSTS NAME..." >&2
    exit 2
fi
folder=$1 hosts=$2
shift 2
if [ -e "$folder" ]; then
    echo "found $folder, which is there already; allowed: a new folder" >&2
    exit 2
fi
names="DNS:localhost,IP:127.0.0.1"
IFS=, read -ra given <<<"$hosts"
for host in "${given[@]}"; do
    if [[ $host =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then
        names+=",IP:$host"
    elif [[ $host =~ ^[A-Za-z0-9*]([A-Za-z0-9.-]*[A-Za-z0-9])?$ ]]; then
        names+=",DNS:$host"
    else
        echo "found the host '$host', allowed: names and IPv4 addresses, with commas" >&2
        exit 2
    fi
done
for name in "$@"; do
    if [[ ! $name =~ ^[A-Za-z0-9_-]+$ ]] || [[ " ca server " == *" $name "* ]]; then
        echo "found the name '$name', allowed: letters, digits, - and _, not ca, not server" >&2
        exit 2
    fi
done

umask 077
made=$(mktemp -d "$(dirname "$folder")/.keys.XXXXXX")
trap 'rm -rf "$made"' EXIT
new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
(
    cd "$made"
    openssl req -x509 "${new[@]}" -days "${DAYS:-365}" -keyout ca.key -out ca.pem -subj "/CN=fedsim CA" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign"
    openssl req "${new[@]}" -keyout server.key -out server.csr -subj "/CN=fedsim SuperLink"
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days "${DAYS:-365}" -out server.pem \
        -extfile <(printf "subjectAltName=%s\nextendedKeyUsage=serverAuth\n" "$names")
    rm server.csr
    for name in "$@"; do
        ssh-keygen -q -t ecdsa -b 384 -N "" -C "$name" -f "$name"
    done
) 2>"$made.log" || { cat "$made.log" >&2; rm -f "$made.log"; exit 1; }
rm -f "$made.log"
mv -T "$made" "$folder"
echo "$folder: ca.pem (everybody), server.pem and server.key (SuperLink), $* (one for each client), and their .pub"
