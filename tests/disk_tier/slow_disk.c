/* A disk whose writes or syncs hang while a file exists, or whose syncs fail: for LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static int is_there(const char *variable) {
    const char *path = getenv(variable);
    return path && access(path, F_OK) == 0;
}

static void wait_while(const char *variable) {
    while (is_there(variable))
        usleep(10000);
}

static int sync_by(const char *name, const char *fails, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    wait_while("SYNCS_HANG");
    if (is_there(fails)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

/* Of data files. */
int fdatasync(int fd) { return sync_by("fdatasync", "DATA_SYNCS_FAIL", fd); }

/* Of the index, by SQLite. */
int fsync(int fd) { return sync_by("fsync", "INDEX_SYNCS_FAIL", fd); }

static ssize_t write_by(const char *name, int fd, const void *bytes, size_t len, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, name);
    wait_while("WRITES_HANG");
    return real(fd, bytes, len, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset) {
    return write_by("pwrite64", fd, bytes, len, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset) {
    return write_by("pwrite", fd, bytes, len, offset);
}
