/* What stands between a consumer of our Arrow structures and the Go runtime. */
#ifndef TOEDIT_GUARD_H
#define TOEDIT_GUARD_H

#include "toedit.h"

/* Puts a guard on an exported structure and all its children: in the process that exported it, releasing works as
 * before; in a forked child, whose copy of the Go runtime is dead, it only marks the structure released. Returns 0, or
 * -1 when there is no memory; the structure is then only partly guarded and must be released at once. */
int toedit_guard_array(struct ArrowArray* array);
int toedit_guard_schema(struct ArrowSchema* schema);

/* Guarded structures, children included, that were not released. */
int64_t toedit_guarded(void);

/* counters[i] += values[i], atomically, for counters in memory that several processes share. */
void toedit_add_counters(int64_t* counters, const int64_t* values, int64_t n);

/* An address that came from Python as an integer. Here, and not in Go, where such a conversion is rightly refused. */
static inline void* toedit_pointer(uint64_t address) { return (void*)(uintptr_t)address; }

#endif
