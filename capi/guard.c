#include "guard.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

/* The release callbacks that arrow-go installs enter Go. After fork the child's copy of that Go runtime has no threads,
 * and entering it hangs; so each callback is replaced by C code that remembers which process it belongs to. What a
 * child drops stays allocated there: its pages are the parent's, copied on write. */

static atomic_int_fast64_t live;

struct array_guard {
  void (*release)(struct ArrowArray*);
  void* private_data;
  pid_t owner;
};

static void release_array(struct ArrowArray* array) {
  struct array_guard* guard = array->private_data;
  if (guard->owner != getpid()) {
    array->release = NULL;
    return;
  }
  array->release = guard->release;
  array->private_data = guard->private_data;
  free(guard);
  atomic_fetch_sub(&live, 1);
  array->release(array);
}

int toedit_guard_array(struct ArrowArray* array) {
  for (int64_t i = 0; i < array->n_children; i++) {
    if (toedit_guard_array(array->children[i]) != 0) return -1;
  }
  struct array_guard* guard = malloc(sizeof *guard);
  if (guard == NULL) return -1;
  guard->release = array->release;
  guard->private_data = array->private_data;
  guard->owner = getpid();
  array->release = release_array;
  array->private_data = guard;
  atomic_fetch_add(&live, 1);
  return 0;
}

struct schema_guard {
  void (*release)(struct ArrowSchema*);
  void* private_data;
  pid_t owner;
};

static void release_schema(struct ArrowSchema* schema) {
  struct schema_guard* guard = schema->private_data;
  if (guard->owner != getpid()) {
    schema->release = NULL;
    return;
  }
  schema->release = guard->release;
  schema->private_data = guard->private_data;
  free(guard);
  atomic_fetch_sub(&live, 1);
  schema->release(schema);
}

int toedit_guard_schema(struct ArrowSchema* schema) {
  for (int64_t i = 0; i < schema->n_children; i++) {
    if (toedit_guard_schema(schema->children[i]) != 0) return -1;
  }
  struct schema_guard* guard = malloc(sizeof *guard);
  if (guard == NULL) return -1;
  guard->release = schema->release;
  guard->private_data = schema->private_data;
  guard->owner = getpid();
  schema->release = release_schema;
  schema->private_data = guard;
  atomic_fetch_add(&live, 1);
  return 0;
}

int64_t toedit_guarded(void) { return atomic_load(&live); }

void toedit_add_counters(int64_t* counters, const int64_t* values, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    __atomic_fetch_add(&counters[i], values[i], __ATOMIC_RELAXED);
  }
}
