// Package foreign is what tests need in C to play a producer of Arrow structures: release callbacks that count (files of
// tests cannot use cgo).
package foreign

// #include "../../toedit.h"
//
// // private_data is the address of an int64_t that counts the releases.
// static void release_array(struct ArrowArray* array) {
//   ++*(int64_t*)array->private_data;
//   array->release = NULL;
// }
// static void release_schema(struct ArrowSchema* schema) {
//   ++*(int64_t*)schema->private_data;
//   schema->release = NULL;
// }
//
// static uint64_t address_of_release_array(void) { return (uint64_t)(uintptr_t)release_array; }
// static uint64_t address_of_release_schema(void) { return (uint64_t)(uintptr_t)release_schema; }
import "C"

// Addresses of the callbacks, for the release field of an ArrowArray and an ArrowSchema. Each adds one to the int64 that
// private_data points to and marks its structure released.
var (
	ReleaseArray  = uint64(C.address_of_release_array())
	ReleaseSchema = uint64(C.address_of_release_schema())
)
