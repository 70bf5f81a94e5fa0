/* Arrow structures on their way out. Everything that a consumer may call lies in C: releasing never enters the Go
 * runtime, which would hang in a forked child, where that runtime is dead. */
#ifndef TOEDIT_EXPORT_H
#define TOEDIT_EXPORT_H

#include "toedit.h"

/* Memory for exported buffers: aligned to 64 bytes, as the Arrow format recommends, and counted. Not zeroed. NULL where
 * there is no memory. */
void* toedit_buffer_new(int64_t size);
void toedit_buffer_free(void* buffer);

/* Bytes of buffers that were not freed, and Arrow structures, children included, that were not released. */
int64_t toedit_buffer_bytes(void);
int64_t toedit_exports(void);

/* Fills an empty ArrowArray that owns up to three buffers (toedit_buffer_new; NULL where the format allows it) and
 * n_children empty children, for the caller to fill. It is released with what it owns at that time, also half filled.
 * Returns 0, or -1 where there is no memory: the array is then empty and the buffers still the caller's. */
int toedit_array_fill(struct ArrowArray* array, int64_t length, int64_t null_count, int64_t n_buffers, void* first,
                      void* second, void* third, int64_t n_children);

/* Fills an empty ArrowSchema with copies of format and name. Otherwise as toedit_array_fill. */
int toedit_schema_fill(struct ArrowSchema* schema, const char* format, const char* name, int64_t flags,
                       int64_t n_children);

/* Releases what a foreign or an own structure holds, if anything. */
void toedit_array_release(struct ArrowArray* array);
void toedit_schema_release(struct ArrowSchema* schema);

/* counters[i] += values[i], atomically, for counters in memory that several processes share. */
void toedit_add_counters(int64_t* counters, const int64_t* values, int64_t n);

/* An address that came from Python as an integer. Here, and not in Go, where such a conversion is rightly refused. */
static inline void* toedit_pointer(uint64_t address) { return (void*)(uintptr_t)address; }

#endif
