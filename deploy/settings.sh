# What the scripts beside it know of the settings; to be sourced in this folder.

# setting NAME [DEFAULT]: a variable of the environment, else of .env, as docker compose takes them.
setting() {
    local value=${!1:-}
    if [ -z "$value" ] && [ -r .env ]; then
        value=$(sed -n "s/^$1=//p" .env | tail -n 1 | sed -E "s/[[:space:]]+#.*//; s/[[:space:]]+$//; s/^(['\"])(.*)\1$/\2/")
    fi
    echo "${value:-${2:-}}"
}

# Containers run as whoever starts them, who can so read the secrets and write into folders of this machine; never as root.
image_user=10001
SAMIX_UID=$(setting SAMIX_UID "$(id -u)")
SAMIX_GID=$(setting SAMIX_GID "$(id -g)")
[ "$SAMIX_UID" != 0 ] || SAMIX_UID=$image_user
[ "$SAMIX_GID" != 0 ] || SAMIX_GID=$image_user
SECRETS_FOLDER=$(setting SECRETS_FOLDER ./secrets)
export SAMIX_UID SAMIX_GID SECRETS_FOLDER
