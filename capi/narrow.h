#ifndef TOEDIT_NARROW_H
#define TOEDIT_NARROW_H

#include <stdint.h>

/* Copies n int64 ids into uint32. Returns the largest id, or UINT64_MAX where one is negative or above UINT32_MAX. */
uint64_t toedit_narrow(uint32_t* dst, const int64_t* src, int64_t n);

#endif
