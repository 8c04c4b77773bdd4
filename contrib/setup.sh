#!/bin/sh
# Installs what the build and the mounts need and the machine lacks, where that is possible.
set -eu

missing=
command -v fusermount3 >/dev/null 2>&1 || missing="$missing fuse3"
command -v cc >/dev/null 2>&1 || missing="$missing gcc"
command -v setpriv >/dev/null 2>&1 || missing="$missing util-linux"

if ! command -v cargo >/dev/null 2>&1; then
    echo "castore: a Rust toolchain is needed (cargo, 1.89 or newer); see https://rustup.rs" >&2
    exit 1
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "castore: installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
else
    echo "castore: these packages are missing:$missing; install them with your package manager, then run this again" >&2
    case "$missing" in
        *gcc*|*fuse3*) exit 1 ;;
    esac
fi
