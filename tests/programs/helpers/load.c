/* load PLUGIN PLUGIN: loads two plugins, calls the first three times and the second once, and says how many handles there
 * are and what the second has counted. */
#include <dlfcn.h>
#include <stdio.h>

typedef int (*function)(void);

static function load(const char *path, void **handle) {
    *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!*handle) {
        fprintf(stderr, "%s\n", dlerror());
        return 0;
    }
    return (function)dlsym(*handle, "bump");
}

int main(int count, char **args) {
    void *first, *second;
    function one, other;
    if (count != 3 || !(one = load(args[1], &first)) || !(other = load(args[2], &second)))
        return 1;
    one();
    one();
    one();
    printf("handles %d, calls %d\n", first == second ? 1 : 2, other());
    return 0;
}
