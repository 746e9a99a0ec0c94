#!/usr/bin/env bash
# The services of compose.yaml: compose.sh up|down|logs|config|build [flags of docker compose]. `make up` calls this.
# PROFILES (or COMPOSE_PROFILES) chooses what belongs to it; OFFLINE=1 and TLS=1 add a file to COMPOSE_FILE. Each may
# stand in .env (see .env.example).
set -euo pipefail
cd "$(dirname "$0")"

all_profiles=cpu,gpu,monitoring,replicas,digits
wait_s=900

fail() {
    echo "error: $1" >&2
    exit 1
}

no_docker() {
    echo "error: $1" >&2
    echo "Without containers: make serve-local starts a mixer server, make quickstart trains on one." >&2
    exit 1
}

check_docker() {
    command -v docker >/dev/null || no_docker "docker is not installed; see https://docs.docker.com/engine/install/"
    local version
    version=$(docker compose version --short 2>/dev/null) ||
        no_docker "docker has no compose plugin; install docker-compose-plugin (Docker's packages) or docker-compose (Debian 13)"
    printf '2.24.4\n%s\n' "${version#v}" | sort --version-sort --check=quiet ||
        no_docker "docker compose ${version#v} is too old; 2.24.4 or newer is needed"
    docker info >/dev/null 2>&1 ||
        no_docker "the Docker engine does not answer; start it (systemctl start docker), or join the group docker if it runs"
}

has_file() { case :$COMPOSE_FILE: in *:"$1":*) ;; *) false ;; esac; }

add_file() { has_file "$1" || COMPOSE_FILE+=:$1; }

choose() {
    # shellcheck source=settings.sh
    . ./settings.sh
    COMPOSE_PROFILES=$(setting PROFILES "$(setting COMPOSE_PROFILES cpu)")
    COMPOSE_FILE=$(setting COMPOSE_FILE compose.yaml)
    [ -z "$(setting OFFLINE)" ] || add_file compose.offline.yaml
    [ -z "$(setting TLS)" ] || add_file compose.tls.yaml
    COMMIT=$(setting COMMIT "$(git describe --always --dirty --abbrev=12 2>/dev/null)")
    export COMPOSE_PROFILES COMPOSE_FILE COMMIT
}

check_secrets() {
    if has_file compose.tls.yaml && [ ! -e "$SECRETS_FOLDER/mixer/server.pem" ]; then
        fail "there are no certificates in $SECRETS_FOLDER; run make secrets first"
    fi
}

# The folder keeps others out; the file must be readable for the user that Grafana runs as.
make_grafana_password() {
    local folder=$SECRETS_FOLDER
    [ -e "$folder/grafana-password" ] && return
    mkdir -p -m 700 "$folder"
    head -c 18 /dev/urandom | base64 >"$folder/grafana-password"
    chmod 0644 "$folder/grafana-password"
    echo "made $(realpath "$folder/grafana-password") for Grafana's user admin"
}

up() {
    check_secrets
    case ,$COMPOSE_PROFILES, in *,monitoring,*) make_grafana_password ;; esac
    if ! docker compose up --build --detach --wait --wait-timeout "$wait_s" "$@"; then
        docker compose ps --all >&2
        echo "error: not everything came up; make logs says why, docs/deploy.md lists what goes wrong" >&2
        return 1
    fi
    docker compose ps --all --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'
    echo "make logs follows it, make down stops it and keeps its data"
}

# All profiles: what an earlier `up` started with another choice belongs to it too.
down() { COMPOSE_PROFILES=$all_profiles docker compose down "$@"; }

logs() { COMPOSE_PROFILES=$all_profiles docker compose logs --follow --tail 100 "$@"; }

case ${1:-} in
up | down | logs)
    check_docker
    choose
    "$@"
    ;;
config | build)
    check_docker
    choose
    docker compose "$@"
    ;;
*)
    echo "usage: $0 up|down|logs|config|build [flags of docker compose]" >&2
    exit 2
    ;;
esac
