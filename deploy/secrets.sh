#!/usr/bin/env bash
# Certificates and tokens for compose.tls.yaml, below deploy/secrets: an authority of one's own, and a folder for each
# program. Run again it issues the certificates anew and keeps authority and tokens; programs take them over by themselves.
# NAMES are what clients call the server by, beside localhost: NAMES="mixer.example.org 192.0.2.7" secrets.sh; without
# them a renewed certificate keeps the names it had.
set -euo pipefail
cd "$(dirname "$0")"
umask 077

# shellcheck source=settings.sh
. ./settings.sh
folder=$SECRETS_FOLDER
image=$(setting IMAGE_PREFIX samix)/mixer:$(setting IMAGE_TAG local)
owner=$SAMIX_UID

issue() {
    # shellcheck disable=SC2206 # NAMES is a list
    local flags=(--names localhost 127.0.0.1 ::1 mixers mixer mixer-2 mixer-gpu ${NAMES:-})
    if [ -e "$folder/authority/ca.key" ]; then flags=(--renew ${NAMES:+"${flags[@]}"}); fi
    docker run --rm --network none --user "$owner" --volume "$(realpath "$folder/authority"):/out" "$image" \
        certs --out /out "${flags[@]}" >/dev/null
}

token() { # role, name
    echo "$1 $2 $(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
}

# The list of all comes last: where it is, the others are as well.
make_tokens() {
    local trainer prometheus
    [ ! -e "$folder/mixer/tokens" ] || return 0
    trainer=$(token mix,online trainer)
    prometheus=$(token read prometheus)
    echo "$trainer" >"$folder/trainer/token"
    echo "${prometheus##* }" >"$folder/prometheus/token"
    printf '%s\n' "$prometheus" "$trainer" >"$folder/mixer/tokens"
}

hand_out() {
    local program name
    for program in mixer trainer prometheus; do
        for name in ca.pem client.pem client.key; do
            cp "$folder/authority/$name" "$folder/$program/"
        done
    done
    cp "$folder/authority/server.key" "$folder/authority/server.pem" "$folder/mixer/"
}

# The folder keeps everybody out; in it, Prometheus's files are such as the user of its image, 65534, can read.
protect() {
    chmod 0700 "$folder"
    chmod 0755 "$folder/prometheus"
    chmod 0644 "$folder/prometheus/"*
    [ "$(id -u)" -ne 0 ] || chown -R "$owner" "$folder/authority" "$folder/mixer" "$folder/trainer"
}

mkdir -p "$folder/authority" "$folder/mixer" "$folder/trainer" "$folder/prometheus"
[ "$(id -u)" -ne 0 ] || chown "$owner" "$folder/authority"
docker image inspect "$image" >/dev/null 2>&1 || ./compose.sh build mixer
issue
hand_out
make_tokens
protect
folder=$(realpath "$folder")
echo "$folder has certificates and tokens; make up TLS=1 uses them."
echo "Clients on this machine take $folder/trainer: SAMIX_TLS_CA, _CERT and _KEY, SAMIX_TOKEN_FILE (docs/deploy.md)"
