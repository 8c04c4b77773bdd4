/* trace attach|seize PID: stops a process as a debugger does, says so, and lets it go on. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(int count, char **args) {
    if (count != 3)
        return 2;
    pid_t pid = atoi(args[2]);
    int seizes = !strcmp(args[1], "seize"), status;
    if (ptrace(seizes ? PTRACE_SEIZE : PTRACE_ATTACH, pid, 0, 0) < 0 ||
        (seizes && ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0)) {
        printf("not attached: %s\n", strerror(errno));
        return 1;
    }
    puts("attached");
    fflush(stdout);
    if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) {
        puts("not stopped");
        return 1;
    }
    puts("stopped");
    fflush(stdout);
    if (ptrace(PTRACE_DETACH, pid, 0, 0) < 0) {
        printf("not detached: %s\n", strerror(errno));
        return 1;
    }
    puts("detached");
    return 0;
}
