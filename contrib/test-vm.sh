#!/bin/sh
# Gets what a virtual machine needs for the tests: contrib/test-vm.sh target/vm
#
# The directory has bin/busybox, vmlinuz and modules/*.ko afterwards, all from Debian's packages, which are unpacked and not
# installed; QEMU itself is installed where that is possible. For what cannot be had, NAME.missing says in one line why, and
# the tests are reported as ignored with that reason. Remove the directory to get a newer kernel.
set -eu

# In seconds, for all of it: what cannot be had by then is missing.
limit=600
end=$(($(date +%s) + limit))
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci fuse virtiofs"

limited() {
    left=$((end - $(date +%s)))
    [ "$left" -gt 0 ] || { echo "error: it takes more than $limit s"; return 1; }
    # In the foreground, so that an interrupt from the terminal ends it too.
    timeout --foreground "$left" "$@" </dev/null
}

is_there() {
    case $1 in
        qemu) command -v qemu-system-x86_64 >/dev/null 2>&1 ;;
        busybox) [ -x "$dir/bin/busybox" ] ;;
        # The last that is written of it.
        kernel) [ -r "$dir/vmlinuz" ] ;;
    esac
}

# Downloads a package with the machine's own lists of packages, which are renewed once where they are missing or too old.
unpack() {
    mkdir -p "$dir/unpacked"
    (cd "$dir/unpacked" && limited apt-get -qq download "$1") || {
        limited apt-get -qq update && (cd "$dir/unpacked" && limited apt-get -qq download "$1")
    } || return 1
    dpkg -x "$dir/unpacked/$1"_*.deb "$dir/unpacked"
}

# The package that the metapackage stands for today.
kernel_package() {
    apt-cache depends --important linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[^ ]*-cloud-amd64\)$/\1/p' | head -n 1
}

qemu() {
    if [ "$(id -u)" != 0 ]; then
        echo "error: no qemu-system-x86_64; install it with your package manager"
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt="limited apt-get -qq -o DPkg::Lock::Timeout=100"
    $apt install -y --no-install-recommends qemu-system-x86 ||
        { $apt update && $apt install -y --no-install-recommends qemu-system-x86; }
}

busybox() {
    unpack busybox-static || return 1
    # Debian 13 has it in usr/bin.
    for path in bin/busybox usr/bin/busybox; do
        [ ! -f "$dir/unpacked/$path" ] || cp "$dir/unpacked/$path" "$dir/bin/busybox"
    done
    is_there busybox || { echo "error: the package busybox-static has no busybox"; return 1; }
}

kernel() {
    package=$(kernel_package)
    [ -n "$package" ] || { limited apt-get -qq update && package=$(kernel_package); } || true
    [ -n "$package" ] || { echo "error: Debian's lists of packages have no linux-image-cloud-amd64"; return 1; }
    unpack "$package" || return 1
    mkdir -p "$dir/modules"
    for module in $modules; do
        # What is not there as a module is built in.
        found=$(find "$dir/unpacked" -name "$module.ko*" | head -n 1)
        case $found in
            *.ko) cp "$found" "$dir/modules/" ;;
            *.xz) xz -dc "$found" > "$dir/modules/$module.ko" ;;
            *.zst) zstd -dcq "$found" > "$dir/modules/$module.ko" ;;
        esac || return 1
    done
    cp "$dir/unpacked/boot/vmlinuz-"* "$dir/vmlinuz.new"
    mv "$dir/vmlinuz.new" "$dir/vmlinuz"
}

if [ $# != 1 ]; then
    echo "usage: $0 DIRECTORY" >&2
    exit 2
fi
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
is_there qemu && is_there busybox && is_there kernel && exit 0

# One at a time: a run that waits here finds everything afterwards.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$dir/lock"
    flock -w $((limit + 10)) 9 || { echo "castore: another run writes to $dir and does not end" >&2; exit 0; }
fi
for name in qemu busybox kernel; do
    if is_there "$name"; then
        rm -f "$dir/$name.missing"
        continue
    fi
    echo "castore: getting $name for the tests with a virtual machine"
    rm -rf "$dir/unpacked"
    why="this machine has no apt-get; only Debian's packages are used"
    # In a process of its own, so that nothing but its status comes out; without the lock, which what a package starts
    # would keep.
    if command -v apt-get >/dev/null 2>&1 && (exec 9>&-; "$name") >"$dir/$name.log" 2>&1; then
        rm -f "$dir/$name.missing"
        continue
    fi
    if [ -s "$dir/$name.log" ]; then
        why=$(sed -n '/^\(error\|E\): /{p;q;}' "$dir/$name.log")
        why="${why:-it failed or took too long}; see $dir/$name.log"
    fi
    echo "$why" > "$dir/$name.missing"
    echo "castore: $name is missing, so the tests with a virtual machine are ignored: $why" >&2
done
rm -rf "$dir/unpacked"
