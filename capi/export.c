#include "export.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, MAX_BUFFERS = 3 };
/* On x86-64, and on arm64 with pages of 4 KiB. */
enum { HUGE_PAGE = 2 << 20 };

static atomic_int_fast64_t buffer_bytes;
static atomic_int_fast64_t exports;

/* Stands in front of a buffer, in ALIGNMENT bytes so that the buffer stays aligned. */
struct block {
  int64_t size;    /* of the buffer */
  size_t capacity; /* of the block */
};

/* A large buffer would be new memory every time, which takes the kernel as long to provide as us to fill, and threads wait for
 * each other there. So it comes in huge pages, and the last blocks are kept for the next call. Slots are taken and filled
 * without a lock, which a fork could find locked. */
enum { LARGE = 2 * HUGE_PAGE, KEPT = 2, LARGEST_KEPT = 64 << 20 };
static _Atomic(struct block*) kept[KEPT];

static void discard(struct block* block) {
  if (block->capacity >= LARGE && block->capacity <= LARGEST_KEPT) {
    for (int i = 0; i < KEPT; i++) {
      struct block* none = NULL;
      if (atomic_compare_exchange_strong(&kept[i], &none, block)) return;
    }
  }
  free(block);
}

/* A kept block of at least so many bytes, which are not less than half of it; NULL if there is none. Others that are met give
 * way to what is needed now. */
static struct block* reuse(size_t whole) {
  for (int i = 0; i < KEPT; i++) {
    struct block* block = atomic_exchange(&kept[i], NULL);
    if (block == NULL) continue;
    if (block->capacity >= whole && block->capacity / 2 <= whole) return block;
    free(block);
  }
  return NULL;
}

void* toedit_buffer_new(int64_t size) {
  if (size < 0 || size > INT64_MAX - ALIGNMENT) return NULL;
  size_t whole = ALIGNMENT + (size_t)size;
  struct block* block = whole < LARGE ? NULL : reuse(whole);
  if (block == NULL) {
    void* memory;
    if (posix_memalign(&memory, whole < LARGE ? ALIGNMENT : HUGE_PAGE, whole) != 0) return NULL;
    /* Where the kernel refuses, nothing is lost. */
    if (whole >= LARGE) madvise(memory, whole & ~(size_t)(HUGE_PAGE - 1), MADV_HUGEPAGE);
    block = memory;
    block->capacity = whole;
  }
  block->size = size;
  atomic_fetch_add(&buffer_bytes, size);
  return (char*)block + ALIGNMENT;
}

void toedit_buffer_free(void* buffer) {
  if (buffer == NULL) return;
  struct block* block = (struct block*)((char*)buffer - ALIGNMENT);
  atomic_fetch_sub(&buffer_bytes, block->size);
  discard(block);
}

int64_t toedit_buffer_bytes(void) { return atomic_load(&buffer_bytes); }
int64_t toedit_exports(void) { return atomic_load(&exports); }

/* What one exported array owns. Each node owns its own: a consumer may move a child out and release it after its
 * parent. The children's structures lie behind it. */
struct array_node {
  const void* buffers[MAX_BUFFERS];
  struct ArrowArray** child_pointers;
  struct ArrowArray children[];
};

static void release_array(struct ArrowArray* array) {
  struct array_node* node = array->private_data;
  for (int64_t i = 0; i < array->n_children; i++) toedit_array_release(array->children[i]);
  for (int i = 0; i < MAX_BUFFERS; i++) toedit_buffer_free((void*)node->buffers[i]);
  free(node->child_pointers);
  free(node);
  array->release = NULL;
  atomic_fetch_sub(&exports, 1);
}

int toedit_array_fill(struct ArrowArray* array, int64_t length, int64_t null_count, int64_t n_buffers, void* first,
                      void* second, void* third, int64_t n_children) {
  struct array_node* node = calloc(1, sizeof *node + (size_t)n_children * sizeof node->children[0]);
  if (node == NULL) return -1;
  if (n_children > 0) {
    node->child_pointers = malloc((size_t)n_children * sizeof *node->child_pointers);
    if (node->child_pointers == NULL) {
      free(node);
      return -1;
    }
    for (int64_t i = 0; i < n_children; i++) node->child_pointers[i] = &node->children[i];
  }
  node->buffers[0] = first;
  node->buffers[1] = second;
  node->buffers[2] = third;
  memset(array, 0, sizeof *array);
  array->length = length;
  array->null_count = null_count;
  array->n_buffers = n_buffers;
  array->buffers = node->buffers;
  array->n_children = n_children;
  array->children = node->child_pointers;
  array->private_data = node;
  array->release = release_array;
  atomic_fetch_add(&exports, 1);
  return 0;
}

struct schema_node {
  char* text; /* format and name */
  struct ArrowSchema** child_pointers;
  struct ArrowSchema children[];
};

static void release_schema(struct ArrowSchema* schema) {
  struct schema_node* node = schema->private_data;
  for (int64_t i = 0; i < schema->n_children; i++) toedit_schema_release(schema->children[i]);
  free(node->text);
  free(node->child_pointers);
  free(node);
  schema->release = NULL;
  atomic_fetch_sub(&exports, 1);
}

int toedit_schema_fill(struct ArrowSchema* schema, const char* format, const char* name, int64_t flags,
                       int64_t n_children) {
  size_t format_size = strlen(format) + 1, name_size = strlen(name) + 1;
  struct schema_node* node = calloc(1, sizeof *node + (size_t)n_children * sizeof node->children[0]);
  if (node == NULL) return -1;
  node->text = malloc(format_size + name_size);
  node->child_pointers = malloc((size_t)(n_children + 1) * sizeof *node->child_pointers);
  if (node->text == NULL || node->child_pointers == NULL) {
    free(node->text);
    free(node->child_pointers);
    free(node);
    return -1;
  }
  memcpy(node->text, format, format_size);
  memcpy(node->text + format_size, name, name_size);
  for (int64_t i = 0; i < n_children; i++) node->child_pointers[i] = &node->children[i];
  memset(schema, 0, sizeof *schema);
  schema->format = node->text;
  schema->name = node->text + format_size;
  schema->flags = flags;
  schema->n_children = n_children;
  schema->children = n_children > 0 ? node->child_pointers : NULL;
  schema->private_data = node;
  schema->release = release_schema;
  atomic_fetch_add(&exports, 1);
  return 0;
}

void toedit_array_release(struct ArrowArray* array) {
  if (array != NULL && array->release != NULL) array->release(array);
}

void toedit_schema_release(struct ArrowSchema* schema) {
  if (schema != NULL && schema->release != NULL) schema->release(schema);
}

void toedit_add_counters(int64_t* counters, const int64_t* values, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    __atomic_fetch_add(&counters[i], values[i], __ATOMIC_RELAXED);
  }
}
