/* call OPERATION PATH [OPTION…]: makes one system call over a mount and prints what came of it.
 *
 * Operations: stat, open (of a file), list, direct (a read past the page cache), read, map.
 * Options: c=SIGNAL catches it with SA_RESTART, b=SIGNAL blocks it in the thread that calls, i=SIGNAL ignores it,
 *   d=SIGNAL is its default action, t=MICROSECONDS sets a timer that goes on, r calls again after each EINTR,
 *   2 calls again once after the first EINTR, m calls in a second thread, child has a child, which ends with it at the latest.
 *
 * Prints "tid N CHILD" before the call and "RESULT after N EINTR, M signals" after it, where RESULT is the bytes read, the
 * entries listed or the size; otherwise the name of the error.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

static const char *operation, *path;
static volatile sig_atomic_t signals;
static sigset_t blocked;
static int retries, file = -1;
static void *block;
static pid_t child;

static void count(int signal) {
    (void)signal;
    signals++;
}

static long entries(int dir) {
    DIR *list = fdopendir(dir);
    long found = 0;
    if (!list)
        return -1;
    for (errno = 0; readdir(list);)
        found++;
    int failed = errno;
    closedir(list);
    errno = failed;
    return failed ? -1 : found;
}

static long call(void) {
    struct stat seen;
    if (!strcmp(operation, "stat"))
        return stat(path, &seen) < 0 ? -1 : (long)seen.st_size;
    if (!strcmp(operation, "open")) {
        int opened = open(path, O_RDONLY);
        if (opened < 0)
            return -1;
        return close(opened);
    }
    if (!strcmp(operation, "list")) {
        int opened = open(path, O_RDONLY | O_DIRECTORY);
        return opened < 0 ? -1 : entries(opened);
    }
    if (!strcmp(operation, "map")) {
        /* Without a handler for SIGBUS: a failure ends the process. */
        volatile char *mapped = mmap(0, 4096, PROT_READ, MAP_PRIVATE, file, 0);
        return mapped == MAP_FAILED ? -1 : mapped[0] >= -128;
    }
    return pread(file, block, 4096, 0);
}

static void *run(void *unused) {
    pthread_sigmask(SIG_BLOCK, &blocked, 0);
    printf("tid %d %d\n", (int)gettid(), (int)child);
    fflush(stdout);
    int interrupted = 0;
    long result;
    while ((result = call()) < 0 && errno == EINTR) {
        interrupted++;
        if (retries >= 0 && interrupted > retries)
            break;
    }
    if (result < 0)
        printf("%s after %d EINTR, %d signals\n", strerrorname_np(errno), interrupted, (int)signals);
    else
        printf("%ld after %d EINTR, %d signals\n", result, interrupted, (int)signals);
    fflush(stdout);
    return unused;
}

int main(int count_args, char **args) {
    int in_thread = 0, has_child = 0, timer = 0;
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    sigemptyset(&blocked);
    operation = args[1];
    path = args[2];
    for (int at = 3; at < count_args; at++) {
        char *option = args[at];
        int number = option[1] == '=' ? atoi(option + 2) : 0;
        struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
        switch (option[0]) {
        case 'c':
            if (!strcmp(option, "child")) {
                has_child = 1;
                break;
            }
            sigaction(number, &action, 0);
            break;
        case 'i':
            signal(number, SIG_IGN);
            break;
        case 'd':
            signal(number, SIG_DFL);
            break;
        case 'b':
            sigaddset(&blocked, number);
            break;
        case 't':
            timer = number;
            break;
        case 'r':
            retries = -1;
            break;
        case '2':
            retries = 1;
            break;
        case 'm':
            in_thread = 1;
            break;
        default:
            return 2;
        }
    }
    if (posix_memalign(&block, 4096, 4096))
        return 2;
    if (!strcmp(operation, "direct") || !strcmp(operation, "read") || !strcmp(operation, "map")) {
        file = open(path, O_RDONLY | (operation[0] == 'd' ? O_DIRECT : 0));
        if (file < 0) {
            printf("%s at open\n", strerrorname_np(errno));
            return 1;
        }
    }
    if (has_child) {
        struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
        sigaction(SIGCHLD, &action, 0);
        child = fork();
        if (!child) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
    }
    if (timer) {
        struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
        struct itimerval every = {{0, timer}, {0, timer}};
        sigaction(SIGALRM, &action, 0);
        setitimer(ITIMER_REAL, &every, 0);
    }
    if (in_thread) {
        pthread_t thread;
        if (pthread_create(&thread, 0, run, 0))
            return 2;
        pthread_join(thread, 0);
    } else {
        run(0);
    }
    return 0;
}
