#!/bin/sh
# Installs the programs that the tests run over mounts, where that is possible: by root, from Debian. The tests of a program
# that is not there are reported as ignored, so that failing to install one is no error.
set -eu

missing=
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need clang clang
need fuse-overlayfs fuse-overlayfs
need rsync rsync
need inotifywait inotify-tools
need gdb gdb
need git git
need python3 python3-minimal
need flock util-linux
# Of the headers for 32-bit programs the C library's own are what is missing most often.
printf '#include <sys/stat.h>\nint main(void) { return 0; }\n' | cc -m32 -x c -o /dev/null - 2>/dev/null ||
    missing="$missing gcc-multilib"

# updatedb is unpacked and not installed: its package has a timer that would index the whole machine every day.
programs=${CARGO_TARGET_DIR:-target}/programs
updatedb=
if ! command -v updatedb.plocate >/dev/null 2>&1 && [ ! -x "$programs/usr/sbin/updatedb.plocate" ]; then
    updatedb=plocate
fi

[ -n "$missing$updatedb" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "castore: the tests of these packages are left out, as they are missing:$missing $updatedb" >&2
    exit 0
fi
echo "castore: installing$missing $updatedb"
apt-get update -qq || true
for package in $missing; do
    # One by one: what one Debian lacks must not keep the others away.
    DEBIAN_FRONTEND=noninteractive timeout --foreground 600 \
        apt-get install -y -qq --no-install-recommends "$package" </dev/null >/dev/null ||
        echo "castore: $package cannot be installed; its tests are left out" >&2
done
if [ -n "$updatedb" ]; then
    mkdir -p "$programs"
    # apt-get writes to the directory that it is started in.
    if (cd "$programs" && timeout --foreground 600 apt-get download -qq plocate </dev/null >/dev/null 2>&1) &&
        dpkg-deb -x "$programs"/plocate_*.deb "$programs"; then
        rm "$programs"/plocate_*.deb
    else
        echo "castore: plocate cannot be unpacked; its test is left out" >&2
    fi
fi
