/* What test_c_library.py asks the C library, as a user's program would.
 *
 *     stream_program steps CELL DTYPE WEIGHTS I H P L B T [VIOLATION]
 *     stream_program errors
 *     stream_program threads
 *
 * `steps` reads from stdin, as raw arrays, weight_ih, weight_hh, bias_ih, bias_hh and, with P,
 * weight_hr of each layer, then x (T, B, I), and writes y (T, B, W), h (L, B, W) and c (L, B, H).
 * While the stream runs, allocations and locks are counted, for which the exit status is 3, and
 * Linux kills the process at any system call but read and write. VIOLATION, one of `allocate`,
 * `lock` and `call`, does what a step must not. */
#define _GNU_SOURCE
#include <rnnfast.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
static int forbid_system_calls(void) { return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT); }
/* exit() and even _exit() would make a call that is forbidden. */
static void leave(int status) { syscall(SYS_exit, status); }
static void make_system_call(void) { syscall(SYS_getpid); }
#else
static int forbid_system_calls(void) { return 0; }
static void leave(int status) { _exit(status); }
static void make_system_call(void) {}
#endif

static volatile long allocations = 0, locks = 0; /* since glibc lets a program have its own */
#ifdef __GLIBC__
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { return ++allocations, __libc_malloc(n); }
void* calloc(size_t n, size_t m) { return ++allocations, __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { return ++allocations, __libc_realloc(p, n); }
void* memalign(size_t a, size_t n) { return ++allocations, __libc_memalign(a, n); }
void* aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) { return !(*p = memalign(a, n)); }
int pthread_mutex_lock(pthread_mutex_t* mutex) {
    static int (*lock)(pthread_mutex_t*);
    void* const found = lock ? NULL : dlsym(RTLD_NEXT, "pthread_mutex_lock");
    if (found) memcpy(&lock, &found, sizeof lock);
    return ++locks, lock(mutex);
}
#endif

static void fail(const char* what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void* read_array(size_t bytes) {
    char* const array = malloc(bytes + 1);
    if (!array || fread(array, 1, bytes, stdin) != bytes) fail("stdin is too short");
    return array;
}

static void write_array(const char* array, size_t bytes) {
    while (bytes) {
        const ssize_t written = write(1, array, bytes);
        if (written <= 0) leave(4);
        array += written, bytes -= (size_t)written;
    }
}

static int steps(char** argv) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    const char *const cell = argv[0], *const violate = argv[9] ? argv[9] : "";
    const size_t item = strcmp(argv[1], "float32") ? 8 : 4;
    const size_t I = strtoul(argv[3], NULL, 10), H = strtoul(argv[4], NULL, 10),
                 P = strtoul(argv[5], NULL, 10), L = strtoul(argv[6], NULL, 10),
                 B = strtoul(argv[7], NULL, 10), T = strtoul(argv[8], NULL, 10);
    const size_t W = P ? P : H, G = !strcmp(cell, "lstm") ? 4 : !strncmp(cell, "gru", 3) ? 3 : 1;
    const size_t x_step = B * I * item, y_step = B * W * item;
    const rnnfast_config config = {cell,       argv[1],    argv[2],    (int64_t)I,
                                   (int64_t)H, (int64_t)P, (int64_t)L, (int64_t)B};
    rnnfast_layer* const layers = calloc(L, sizeof *layers);
    rnnfast_stream *original, *stream;
    char *x, *y, *h, *c;
    for (size_t l = 0; l < L; ++l) {
        layers[l].weight_ih = read_array(G * H * (l ? W : I) * item);
        layers[l].weight_hh = read_array(G * H * W * item);
        layers[l].bias_ih = read_array(G * H * item);
        layers[l].bias_hh = read_array(G * H * item);
        if (P) layers[l].weight_hr = read_array(P * H * item);
    }
    x = read_array(T * x_step);
    y = malloc(T * y_step), h = malloc(L * y_step), c = malloc(L * B * H * item);
    original = rnnfast_create(&config, layers);
    if (!original) fail(rnnfast_error());
    stream = rnnfast_clone(original);
    if (!stream) fail(rnnfast_error());
    rnnfast_destroy(original);

    pthread_mutex_lock(&mutex), pthread_mutex_unlock(&mutex); /* the first looks for the function */
    if (forbid_system_calls()) fail("system calls cannot be forbidden");
    allocations = locks = 0;
    for (size_t t = 0; t < T / 2; ++t) rnnfast_step(stream, x + t * x_step, y + t * y_step);
    rnnfast_get_state(stream, h, c);
    rnnfast_reset(stream, NULL);
    rnnfast_set_state(stream, h, c);
    rnnfast_run(stream, (int64_t)(T - T / 2), x + T / 2 * x_step, y + T / 2 * y_step);
    rnnfast_get_state(stream, h, c);
    if (!strcmp(violate, "allocate")) free(malloc(1 + T));
    if (!strcmp(violate, "lock")) pthread_mutex_lock(&mutex);
    if (!strcmp(violate, "call")) make_system_call();
    /* Products in low precision are up to 4 times as fast. */
    if (rnnfast_step_work(stream) * (strcmp(argv[1], argv[2]) ? 4 : 1) <
        (double)(G * H * (I + W) * B))
        leave(5);
    if (allocations || locks) leave(3);
    write_array(y, T * y_step);
    write_array(h, L * y_step);
    if (G == 4) write_array(c, L * B * H * item);
    leave(0);
    return 0;
}

static float weights[64];
static const rnnfast_config small = {"lstm", "float32", NULL, 1, 4, 0, 1, 1};
static const rnnfast_layer small_layer = {weights, weights, NULL, NULL, NULL};

/* What is refused, and why, one line each. */
static int errors(void) {
    rnnfast_config config = small;
    rnnfast_layer layer = small_layer;
    printf("%s\n", rnnfast_error());
    config.cell = "lstn";
    if (rnnfast_create(&config, &layer)) return 1;
    printf("%s\n", rnnfast_error());
    config.cell = "lstm", config.hidden_size = 0;
    if (rnnfast_create(&config, &layer)) return 1;
    printf("%s\n", rnnfast_error());
    config.hidden_size = 4, layer.weight_hh = NULL;
    if (rnnfast_create(&config, &layer)) return 1;
    printf("%s\n", rnnfast_error());
    if (rnnfast_create(NULL, &layer)) return 1;
    printf("%s\n", rnnfast_error());
    if (!rnnfast_isa()) printf("%s\n", rnnfast_error());
    return 0;
}

enum { THREADS = 4, ROUNDS = 20000 };

typedef struct {
    rnnfast_stream* stream;
    float y[4];
    const char* error;
} Run;

static void* run_in_thread(void* argument) {
    Run* const run = argument;
    for (int t = 0; t < ROUNDS; ++t) {
        const float x = (float)(t % 7) - 3;
        rnnfast_step(run->stream, &x, run->y);
    }
    if (rnnfast_create(NULL, NULL)) return NULL;
    run->error = strdup(rnnfast_error());
    rnnfast_destroy(run->stream);
    return NULL;
}

/* Clones of one stream, which share its weights, each in a thread: all get what one gets alone. */
static int threads(void) {
    static Run runs[THREADS + 1];
    pthread_t ids[THREADS];
    rnnfast_stream* stream;
    for (int k = 0; k < 64; ++k) weights[k] = (float)(7 * k % 11) / 11 - 0.5f;
    stream = rnnfast_create(&small, &small_layer);
    if (!stream) fail(rnnfast_error());
    for (int k = 0; k < THREADS; ++k) runs[k].stream = rnnfast_clone(stream);
    runs[THREADS].stream = stream;
    for (int k = 0; k < THREADS; ++k)
        if (pthread_create(&ids[k], NULL, run_in_thread, &runs[k])) fail("no thread");
    for (int k = 0; k < THREADS; ++k) pthread_join(ids[k], NULL);
    if (strlen(rnnfast_error())) fail("an error of another thread");
    run_in_thread(&runs[THREADS]);
    for (int k = 0; k < THREADS; ++k) {
        if (memcmp(runs[k].y, runs[THREADS].y, sizeof runs[k].y)) fail("the threads differ");
        if (!runs[k].error || strcmp(runs[k].error, runs[THREADS].error)) fail("errors differ");
    }
    return runs[0].y[0] == 0;
}

int main(int argc, char** argv) {
    if (argc >= 11 && !strcmp(argv[1], "steps")) return steps(argv + 2);
    if (argc == 2 && !strcmp(argv[1], "errors")) return errors();
    if (argc == 2 && !strcmp(argv[1], "threads")) return threads();
    return 2;
}
