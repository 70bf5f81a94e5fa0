/* Stands in for CUDA 13's runtime: a card whose memory is the host's and whose kernels do nothing.
 *
 * What ONNX Runtime's CUDA provider decides by itself is real over it: which nodes are its own, what its operators check, how
 * much memory they ask for, which kernels they launch. No value is computed, and what is copied to the host are zeros.
 * stand_in.py adds every other function of the runtime that the provider names, as one that succeeds.
 *
 * Environment: TOEDIT_CARDS, how many there are (1); TOEDIT_CARD_MEMORY, the bytes of memory; TOEDIT_CARD_COUNT, what the
 * provider reads when it copies four bytes to the host, which is how it learns the number of NonZero's positions (0);
 * TOEDIT_CARD_LOG, a file that launches, copies to the host and every new height of the memory in use are written to.
 */
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_DEVICE = 101, OUT_OF_MEMORY = 2, NO_DEVICE = 100, TO_HOST = 2, ON_CARD = 3 };
typedef struct { unsigned x, y, z; } dim3;
typedef int error;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t used, peak;

static long long setting(const char *name, long long otherwise) {
    const char *value = getenv(name);
    return value ? atoll(value) : otherwise;
}

void card_log(const char *what, const char *which) {
    const char *path = getenv("TOEDIT_CARD_LOG");
    if (!path) return;
    pthread_mutex_lock(&lock);
    FILE *file = fopen(path, "a");
    if (file) {
        fprintf(file, "%s %s\n", what, which);
        fclose(file);
    }
    pthread_mutex_unlock(&lock);
}

static void log_size(const char *what, size_t size) {
    char bytes[32];
    snprintf(bytes, sizeof bytes, "%zu", size);
    card_log(what, bytes);
}

/* The card: as an H200 describes itself, where the provider asks. Offsets of cudaDeviceProp in CUDA 13's headers. */

static void at(void *properties, size_t offset, long long value, size_t size) {
    memcpy((char *)properties + offset, &value, size);
}

static long long memory(void) { return setting("TOEDIT_CARD_MEMORY", 140ll << 30); }

error cudaGetDeviceCount(int *count) {
    *count = (int)setting("TOEDIT_CARDS", 1);
    return *count ? SUCCESS : NO_DEVICE;
}
static _Thread_local int current;
error cudaGetDevice(int *device) { *device = current; return SUCCESS; }
error cudaSetDevice(int device) {
    if (device < 0 || device >= setting("TOEDIT_CARDS", 1)) return INVALID_DEVICE;
    current = device;
    return SUCCESS;
}
error cudaGetDeviceProperties(void *p, int device) {
    (void)device;
    memset(p, 0, 1008);
    strcpy(p, "stand-in");
    at(p, 288, memory(), 8);    /* totalGlobalMem */
    at(p, 296, 48 << 10, 8);    /* sharedMemPerBlock */
    at(p, 304, 65536, 4);       /* regsPerBlock */
    at(p, 308, 32, 4);          /* warpSize */
    at(p, 320, 1024, 4);        /* maxThreadsPerBlock */
    for (int i = 0; i < 3; i++) {
        at(p, 324 + 4 * i, i < 2 ? 1024 : 64, 4);            /* maxThreadsDim */
        at(p, 336 + 4 * i, i < 1 ? 2147483647 : 65535, 4);   /* maxGridSize */
    }
    at(p, 360, 9, 4);           /* major; minor is 0 */
    at(p, 384, 132, 4);         /* multiProcessorCount */
    at(p, 596, 50 << 20, 4);    /* l2CacheSize */
    at(p, 604, 2048, 4);        /* maxThreadsPerMultiProcessor */
    at(p, 624, 228 << 10, 8);   /* sharedMemPerMultiprocessor */
    at(p, 632, 65536, 4);       /* regsPerMultiprocessor */
    at(p, 672, 227 << 10, 8);   /* sharedMemPerBlockOptin */
    return SUCCESS;
}
error cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: *value = 1024; break;         /* threads of a block */
    case 2: case 3: *value = 1024; break; /* of its x and y */
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;   /* blocks of a grid's x */
    case 6: case 7: *value = 65535; break;
    case 8: *value = 48 << 10; break;     /* shared memory of a block */
    case 10: *value = 32; break;          /* warp */
    case 16: *value = 132; break;         /* multiprocessors */
    case 39: *value = 2048; break;        /* threads of one */
    case 75: *value = 9; break;           /* compute capability 9.0 */
    case 81: *value = 228 << 10; break;   /* shared memory of a multiprocessor */
    case 97: *value = 227 << 10; break;   /* of a block that asks for it */
    default: *value = 0;
    }
    return SUCCESS;
}
error cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
error cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }

/* Errors, with the words of the real ones. */

static _Thread_local error last;
const char *cudaGetErrorString(error e) {
    return e == OUT_OF_MEMORY ? "out of memory" : e == NO_DEVICE ? "no CUDA-capable device is detected"
         : e == INVALID_DEVICE ? "invalid device ordinal" : "no error";
}
const char *cudaGetErrorName(error e) { return cudaGetErrorString(e); }
error cudaGetLastError(void) { error e = last; last = SUCCESS; return e; }
error cudaPeekAtLastError(void) { return last; }

/* Memory. */

static error give(void **p, size_t size) {
    pthread_mutex_lock(&lock);
    int fits = used + size <= (size_t)memory();
    *p = fits ? calloc(1, size ? size : 1) : NULL;
    if (*p) used += malloc_usable_size(*p);
    int higher = used > peak;
    if (higher) peak = used;
    pthread_mutex_unlock(&lock);
    if (higher) log_size("memory", peak);
    return *p ? SUCCESS : (last = OUT_OF_MEMORY);
}
error cudaMalloc(void **p, size_t size) { return give(p, size); }
error cudaFree(void *p) {
    pthread_mutex_lock(&lock);
    if (p) used -= malloc_usable_size(p);
    free(p);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
error cudaHostAlloc(void **p, size_t size, unsigned flags) { (void)flags; *p = calloc(1, size ? size : 1); return SUCCESS; }
error cudaMallocHost(void **p, size_t size) { return cudaHostAlloc(p, size, 0); }
error cudaFreeHost(void *p) { free(p); return SUCCESS; }
error cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    *all = (size_t)memory();
    *free_bytes = *all - used;
    return SUCCESS;
}
error cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    (void)stream;
    if (kind == TO_HOST) {
        log_size("to_host", size);
        if (size > 1) { /* one byte is a condition, which was copied here and not computed */
            memset(to, 0, size);
            if (size == 4) *(int *)to = (int)setting("TOEDIT_CARD_COUNT", 0);
            return SUCCESS;
        }
    }
    /* Only conditions are ever read, and a card's own copies take no time of the host. */
    if (kind != ON_CARD || size <= 8) memmove(to, from, size);
    return SUCCESS;
}
error cudaMemcpy(void *to, const void *from, size_t size, int kind) { return cudaMemcpyAsync(to, from, size, kind, NULL); }
error cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height, int kind,
                        void *stream) {
    for (size_t i = 0; i < height; i++) cudaMemcpyAsync(to + i * to_pitch, from + i * from_pitch, width, kind, stream);
    return SUCCESS;
}
error cudaMemset(void *p, int value, size_t size) { (void)p, (void)value, (void)size; return SUCCESS; }
error cudaMemsetAsync(void *p, int value, size_t size, void *stream) { (void)stream; return cudaMemset(p, value, size); }
error cudaPointerGetAttributes(void *attributes, const void *p) {
    memset(attributes, 0, 88);
    *(int *)attributes = 2; /* on the card */
    *(const void **)((char *)attributes + 8) = p;
    return SUCCESS;
}

/* Streams and events are handles that nobody looks into. */

static error handle(void **p) { *p = calloc(1, 64); return SUCCESS; }
error cudaStreamCreate(void **p) { return handle(p); }
error cudaStreamCreateWithFlags(void **p, unsigned flags) { (void)flags; return handle(p); }
error cudaStreamDestroy(void *p) { free(p); return SUCCESS; }
error cudaStreamIsCapturing(void *stream, int *capturing) { (void)stream; *capturing = 0; return SUCCESS; }
error cudaEventCreate(void **p) { return handle(p); }
error cudaEventCreateWithFlags(void **p, unsigned flags) { (void)flags; return handle(p); }
error cudaEventDestroy(void *p) { free(p); return SUCCESS; }

/* Kernels: named when the provider is loaded, and written down when they are launched. */

static struct { const void *function; const char *name; } *kernels;
static size_t known, room;

void **__cudaRegisterFatBinary(void *binary) { static void *none[8]; (void)binary; return none; }
void __cudaRegisterFunction(void **binary, const void *function, char *device_function, const char *name, int limit, void *a,
                            void *b, void *c, void *d, int *e) {
    (void)binary, (void)device_function, (void)limit, (void)a, (void)b, (void)c, (void)d, (void)e;
    if (known == room) kernels = realloc(kernels, (room = room ? 2 * room : 4096) * sizeof *kernels);
    kernels[known].function = function;
    kernels[known++].name = name;
}
static error launch(const void *function) {
    const char *name = "unknown";
    if (getenv("TOEDIT_CARD_LOG"))
        for (size_t i = 0; i < known; i++)
            if (kernels[i].function == function) name = kernels[i].name;
    card_log("launch", name);
    return SUCCESS;
}
error __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return SUCCESS; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    (void)grid, (void)block, (void)shared, (void)stream;
    return 0;
}
error __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0;
    *stream = NULL;
    return SUCCESS;
}
error __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    (void)grid, (void)block, (void)arguments, (void)shared, (void)stream;
    return launch(kernel);
}
error cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
    return __cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
error cudaLaunchKernelExC(const void *configuration, const void *kernel, void **arguments) {
    (void)configuration, (void)arguments;
    return launch(kernel);
}
error cudaFuncGetAttributes(int *attributes, const void *function) {
    (void)function;
    memset(attributes, 0, 144);
    attributes[6] = 1024; /* threads of a block */
    attributes[7] = 64;   /* registers of a thread */
    attributes[8] = attributes[9] = 90;
    return SUCCESS;
}
error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads, size_t shared,
                                                             unsigned flags) {
    (void)function, (void)threads, (void)shared, (void)flags;
    *blocks = 2;
    return SUCCESS;
}
