package capi

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"

	"toedit/editor/scorer"
)

// Kind says which sort of error it is. The names cross to Python in front of the message, the numbers to C.
type Kind int

// The kinds, in the order of the TOEDIT_ constants of toedit.h.
const (
	OK Kind = iota
	Input
	Scores
	Prior
	Runtime
	Closed
	Cancelled
	Internal
)

var kindNames = [...]string{"ok", "input", "scores", "prior", "runtime", "closed", "cancelled", "internal"}

func (k Kind) String() string { return kindNames[k] }

// Error is every error that leaves this package.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Kind.String() + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func fail(kind Kind, format string, args ...any) *Error {
	return &Error{kind, fmt.Errorf(format, args...)}
}

// poison holds what the first panic said. After a panic nothing is known about the library's state, so it answers
// nothing but that.
var poison atomic.Pointer[string]

// guarded runs an entry point. Whatever happens inside comes back as an *Error: a Go panic that crossed into C or
// Python would end the process.
func guarded(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = poisoned(fmt.Sprintf("%v\n%s", p, debug.Stack()))
		}
	}()
	if what := poison.Load(); what != nil {
		return refuse(*what)
	}
	err = do()
	if err == nil {
		return nil
	}
	var panicked *scorer.PanicError
	if errors.As(err, &panicked) {
		return poisoned(panicked.Error())
	}
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	return &Error{Internal, err}
}

func poisoned(what string) error {
	poison.CompareAndSwap(nil, &what)
	return refuse(what)
}

func refuse(what string) *Error {
	return fail(Internal, "toedit failed in a way that it should not (in process %d) and does nothing more in this process; "+
		"please report this: %s", os.Getpid(), what)
}

// PanicForTest panics inside an entry point, so that tests can see what follows. It asks for a word, since it cannot be
// undone.
func PanicForTest(confirm string) error {
	return guarded(func() error {
		if confirm != "poison this process" {
			return fail(Input, "PanicForTest wants the words %q", "poison this process")
		}
		panic("a panic on purpose")
	})
}
