package capi

// #include "signals.h"
import "C"

// keepSignals remembers the process's signal handlers and returns what puts them back.
func keepSignals() (restore func()) {
	kept := C.toedit_signals_keep()
	return func() { C.toedit_signals_restore(kept) }
}
