/* stat32 stat|list PATH…: what a program without large-file support sees; to be compiled with -m32. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int list(const char *path) {
    DIR *dir = opendir(path);
    int entries = 0;
    if (!dir)
        return -1;
    errno = 0;
    while (readdir(dir))
        entries++;
    int failed = errno;
    closedir(dir);
    errno = failed;
    return failed ? -1 : entries;
}

int main(int count, char **args) {
    _Static_assert(sizeof(ino_t) == 4, "compiled for large files");
    for (int at = 2; at < count; at++) {
        struct stat seen;
        int lists = !strcmp(args[1], "list");
        int done = lists ? list(args[at]) : stat(args[at], &seen);
        if (done < 0)
            printf("%s: %s\n", args[at], strerrorname_np(errno));
        else if (lists)
            printf("%s: %d\n", args[at], done);
        else
            printf("%s: ok\n", args[at]);
    }
    return 0;
}
