// Package foreign is what tests need in C (files of tests cannot use cgo): release callbacks that count, to play a producer of
// Arrow structures, and a library that takes over a signal.
package foreign

// #include <signal.h>
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
//
// static void ignore(int number) { (void)number; }
// static void replace_handler(int number) { signal(number, ignore); }
// static uint64_t handler(int number) {
//   struct sigaction action;
//   return sigaction(number, NULL, &action) == 0 ? (uint64_t)(uintptr_t)action.sa_handler : 0;
// }
import "C"

// Addresses of the callbacks, for the release field of an ArrowArray and an ArrowSchema. Each adds one to the int64 that
// private_data points to and marks its structure released.
var (
	ReleaseArray  = uint64(C.address_of_release_array())
	ReleaseSchema = uint64(C.address_of_release_schema())
)

// ReplaceHandler puts a handler of C's, without an alternate stack, in the place of a signal's.
func ReplaceHandler(number int) { C.replace_handler(C.int(number)) }

// Handler is the address of a signal's handler.
func Handler(number int) uint64 { return uint64(C.handler(C.int(number))) }
