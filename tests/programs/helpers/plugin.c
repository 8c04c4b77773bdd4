/* A plugin with a state of its own. */
static int calls;

int bump(void) { return ++calls; }
