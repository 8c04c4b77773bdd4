#!/bin/sh
# Imports a real tree, mounts it, reads every byte of it through the mount, compares it with the source, and does so again
# from the warm cache with the store moved away. TREE= names another tree than the Rust toolchain of this machine.
set -eu
cd "$(dirname "$0")/.."

tree=${TREE:-$(rustc --print sysroot)}
if [ ! -d "$tree" ]; then
    echo "demo: $tree is not a directory; name one with TREE=" >&2
    exit 1
fi

cargo build --release --locked
castore=$PWD/${CARGO_TARGET_DIR:-target}/release/castore
case ${CARGO_TARGET_DIR:-} in /*) castore=$CARGO_TARGET_DIR/release/castore ;; esac

dir=$(mktemp -d "${TMPDIR:-/var/tmp}/castore-demo.XXXXXX")
mnt=$dir/mnt
mkdir "$mnt"
export CASTORE_REMOTE="objectstore+file://$dir/store" CASTORE_CACHE_DIR="$dir/cache" CASTORE_MIN_FREE=0

cleanup() {
    status=$?
    trap - EXIT INT TERM
    if grep -q " $mnt " /proc/self/mounts; then
        "$castore" unmount "$mnt" || "$castore" unmount --lazy "$mnt" || umount -l "$mnt" || true
    fi
    rm -rf "$dir"
    [ $status = 0 ] || echo "demo: FAILED" >&2
    exit $status
}
trap cleanup EXIT INT TERM

now() { date +%s.%N; }
since() { echo "$1 $(now)" | awk '{ printf "%.1f", $2 - $1 }'; }
# Names, types, link targets and execute bits; the bytes are compared by diff.
shape() { (cd "$1" && find . \( -type f -perm -100 -printf 'x' \) , -printf '%y %p %l\n' | LC_ALL=C sort); }
compare() {
    shape "$tree" > "$dir/expected"
    shape "$mnt" > "$dir/actual"
    cmp "$dir/expected" "$dir/actual"
    diff -r --no-dereference "$tree" "$mnt"
}

echo "demo: importing $tree"
start=$(now)
root=$("$castore" import --name demo "$tree")
imported=$(since "$start")

"$castore" mount "$root" "$mnt"
echo "demo: mounted $root"
ls -l "$mnt"
start=$(now)
find "$mnt" -type f -print0 | xargs -0 cat > /dev/null
cold=$(since "$start")
compare
files=$(find "$mnt" -type f | wc -l)
bytes=$(find "$mnt" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
"$castore" unmount "$mnt"

mv "$dir/store" "$dir/store-moved-away"
"$castore" mount "$root" "$mnt"
start=$(now)
find "$mnt" -type f -print0 | xargs -0 cat > /dev/null
warm=$(since "$start")
compare
if [ -x "$mnt/bin/rustc" ]; then
    mkdir "$dir/crate"
    echo 'fn main() { println!("demo: a program compiled by the mounted rustc says hello"); }' > "$dir/crate/main.rs"
    "$mnt/bin/rustc" -o "$dir/crate/main" "$dir/crate/main.rs"
    "$dir/crate/main"
fi
"$castore" status > "$dir/status"
hits=$(sed -n 's/^ *\([0-9.]* %\) of reads were at hand$/\1/p' "$dir/status")
"$castore" unmount "$mnt"

cat <<END
demo: byte-identical, twice; the second time from the cache alone, with the store moved away
  files            $files
  bytes            $bytes
  import           $imported s
  read cold        $cold s
  read warm        $warm s
  cache hits       $hits of all reads
  cache on disk    $(du -sm "$dir/cache" | cut -f1) MiB
END
