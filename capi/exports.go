// Package capi is where C meets Go: the Arrow C data interface in and out, handles, status codes, and every line of
// unsafe and cgo in the project. Its Go functions are what package gobridge binds for Python; the functions in this
// file are the same under C names, for libtoedit (capi/lib) and its header, toedit.h.
package capi

// #include <stdlib.h>
// #include <string.h>
// #include "toedit.h"
import "C"

import (
	"errors"
	"unsafe"
)

func addressOf[T any](p *T) Address { return Address(uintptr(unsafe.Pointer(p))) }

// status turns an error into a number and, where the caller wants it, a message on the C heap.
func status(err error, message **C.char) C.int32_t {
	if message != nil {
		*message = nil
	}
	if err == nil {
		return C.TOEDIT_OK
	}
	kind, text := Internal, err.Error()
	var known *Error
	if errors.As(err, &known) {
		kind, text = known.Kind, known.Err.Error()
	}
	if message != nil {
		*message = C.CString(text)
	}
	return C.int32_t(kind)
}

// opened is status for functions that return a handle.
func opened(handle uint64, err error, out *C.uint64_t, message **C.char) C.int32_t {
	if out == nil {
		if err == nil {
			err = errors.Join(fail(Input, "the pointer for the handle is null"), Close(handle))
		}
		return status(err, message)
	}
	*out = C.uint64_t(handle)
	return status(err, message)
}

//export toedit_free
func toedit_free(message *C.char) { C.free(unsafe.Pointer(message)) }

//export toedit_prior_open
func toedit_prior_open(folder, reading *C.toedit_cchar, prior *C.uint64_t, message **C.char) C.int32_t {
	handle, err := OpenPrior(C.GoString(folder), C.GoString(reading))
	return opened(handle, err, prior, message)
}

//export toedit_scorer_open
func toedit_scorer_open(prior C.uint64_t, library, options *C.toedit_cchar, scorer *C.uint64_t, message **C.char) C.int32_t {
	handle, err := OpenScorer(uint64(prior), C.GoString(library), C.GoString(options))
	return opened(handle, err, scorer, message)
}

//export toedit_score
func toedit_score(scorer C.uint64_t, options *C.toedit_cchar, batch *C.struct_ArrowArray, schema *C.struct_ArrowSchema,
	out *C.struct_ArrowArray, outSchema *C.struct_ArrowSchema, message **C.char) C.int32_t {
	if err := zeroOut(addressOf(out), addressOf(outSchema)); err != nil {
		releaseBoth(addressOf(batch), addressOf(schema))
		return status(err, message)
	}
	job, err := StartScore(uint64(scorer), addressOf(batch), addressOf(schema), C.GoString(options))
	if err == nil {
		err = TakeScore(job, addressOf(out), addressOf(outSchema))
	}
	return status(err, message)
}

//export toedit_editor_open
func toedit_editor_open(prior C.uint64_t, policy *C.toedit_cchar, editor *C.uint64_t, message **C.char) C.int32_t {
	handle, err := OpenEditor(uint64(prior), C.GoString(policy))
	return opened(handle, err, editor, message)
}

//export toedit_edit
func toedit_edit(editor, seed C.uint64_t, epoch C.uint32_t, generation C.uint16_t, batch *C.struct_ArrowArray, schema *C.struct_ArrowSchema,
	out *C.struct_ArrowArray, outSchema *C.struct_ArrowSchema, log *C.struct_ArrowArray, logSchema *C.struct_ArrowSchema,
	counts *C.struct_toedit_counts, message **C.char) C.int32_t {
	return status(Edit(uint64(editor), uint64(seed), uint32(epoch), uint16(generation), EditArgs{
		Batch: addressOf(batch), Schema: addressOf(schema),
		Out: addressOf(out), OutSchema: addressOf(outSchema),
		Log: addressOf(log), LogSchema: addressOf(logSchema),
		Counts: addressOf(counts),
	}), message)
}

//export toedit_close
func toedit_close(handle C.uint64_t, message **C.char) C.int32_t {
	return status(Close(uint64(handle)), message)
}

//export toedit_get_usage
func toedit_get_usage(usage *C.struct_toedit_usage, message **C.char) C.int32_t {
	if usage != nil {
		*usage = C.struct_toedit_usage{}
	}
	return status(guarded(func() error {
		if usage == nil {
			return fail(Input, "the pointer for the usage is null")
		}
		u := GetUsage()
		*usage = C.struct_toedit_usage{
			allocated_bytes: C.int64_t(u.AllocatedBytes),
			exports:         C.int64_t(u.Exports),
			handles:         C.int64_t(u.Handles),
		}
		return nil
	}), message)
}
