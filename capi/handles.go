package capi

import (
	"fmt"
	"os"
	"sync"

	"toedit/editor/prior"
	"toedit/editor/vocab"
)

// Handles are integers: the process that made them in the upper half, a running number in the lower. A handle that
// reaches another process (a forked worker, a pickle) is refused there instead of meaning some other object.

type handleTable struct {
	sync.Mutex
	last    uint32
	objects map[uint64]any
}

var handles = handleTable{objects: map[uint64]any{}}

func (t *handleTable) add(object any) uint64 {
	t.Lock()
	defer t.Unlock()
	t.last++
	h := uint64(os.Getpid())<<32 | uint64(t.last)
	t.objects[h] = object
	return h
}

func (t *handleTable) remove(h uint64) (any, error) {
	t.Lock()
	defer t.Unlock()
	object, err := t.find(h)
	if err == nil {
		delete(t.objects, h)
	}
	return object, err
}

func (t *handleTable) find(h uint64) (any, error) {
	if owner := h >> 32; owner != uint64(os.Getpid()) && owner != 0 {
		return nil, fail(Closed, "handle %#x belongs to process %d and this is process %d; open it again here", h, owner, os.Getpid())
	}
	object, ok := t.objects[h]
	if !ok {
		return nil, fail(Closed, "handle %#x is closed or was never opened; open it again", h)
	}
	return object, nil
}

func (t *handleTable) count() int {
	t.Lock()
	defer t.Unlock()
	return len(t.objects)
}

// lookup returns the object behind a handle, if it is of type T.
func lookup[T any](h uint64) (T, error) {
	handles.Lock()
	defer handles.Unlock()
	var none T
	object, err := handles.find(h)
	if err != nil {
		return none, err
	}
	typed, ok := object.(T)
	if !ok {
		return none, fail(Closed, "handle %#x is %s, not %s", h, kindOf(object), kindOf(any(none)))
	}
	return typed, nil
}

func kindOf(object any) string {
	switch object.(type) {
	case *prior.Prior:
		return "a prior"
	case *openScorer:
		return "a scorer"
	case *openEditor:
		return "an editor"
	case *job:
		return "a scoring job"
	case *vocab.Table:
		return "a tokenizer"
	}
	return fmt.Sprintf("a %T", object)
}
