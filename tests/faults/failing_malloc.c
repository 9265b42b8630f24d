/* Loaded before the C library's own: once armed, the n-th allocation from then on fails, alone. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

atomic_long failing_at; /* 0: not armed */
static atomic_long num_calls;

void arm_malloc(long n) {
    atomic_store(&num_calls, 0);
    atomic_store(&failing_at, n);
}

long disarm_malloc(void) {
    atomic_store(&failing_at, 0);
    return atomic_load(&num_calls);
}

static int fails(void) {
    long at = atomic_load(&failing_at);
    return at != 0 && atomic_fetch_add(&num_calls, 1) + 1 == at;
}

static void* none(void) {
    errno = ENOMEM;
    return NULL;
}

void* malloc(size_t size) { return fails() ? none() : __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return fails() ? none() : __libc_calloc(count, size); }
void* realloc(void* old, size_t size) { return fails() ? none() : __libc_realloc(old, size); }
void* memalign(size_t alignment, size_t size) { return fails() ? none() : __libc_memalign(alignment, size); }
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void** out, size_t alignment, size_t size) {
    void* found = memalign(alignment, size);
    if (found == NULL) return ENOMEM;
    *out = found;
    return 0;
}
