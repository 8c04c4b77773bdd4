#!/bin/busybox sh
# The first process of the guest. It loads the drivers and then runs what the second serial line asks for, one script after
# the other. The kernel's messages go to the first line.
#
# It says `ready BOOT_ID` once. A request is `TOKEN SCRIPT`, the script in base64; the answer is `TOKEN STATUS LENGTH LENGTH`,
# followed by as many bytes of its output and of its errors.

/bin/busybox mkdir -p /dev /mnt /proc /sys /tmp
/bin/busybox --install -s /bin
export PATH=/bin LC_ALL=C HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp

# What the kernel has built in is not there as a module.
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci fuse virtiofs; do
    [ ! -f /modules/$module.ko ] || insmod /modules/$module.ko
done

cd /tmp
exec </dev/ttyS1 >/dev/ttyS1
stty raw -echo
echo "ready $(cat /proc/sys/kernel/random/boot_id)"
while read -r token script; do
    echo "$script" | base64 -d >/tmp/.script
    sh /tmp/.script </dev/null >/tmp/.stdout 2>/tmp/.stderr
    echo "$token $? $(stat -c %s /tmp/.stdout) $(stat -c %s /tmp/.stderr)"
    cat /tmp/.stdout /tmp/.stderr
done
