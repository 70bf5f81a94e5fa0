package capi

import (
	"runtime/debug"
	"sync"
	"sync/atomic"

	"toedit/editor/scorer"
)

// inParallel calls do(0) to do(n-1), in this order but several at the same time, each thread the next one as it gets there. It
// returns the error of the lowest number. A panic in any of them is the caller's, who can recover from it.
func inParallel(threads, n int, do func(i int) error) error {
	if n == 1 {
		return do(0)
	}
	errs := make([]error, n)
	one := func(i int) {
		defer func() {
			if p := recover(); p != nil {
				errs[i] = &scorer.PanicError{Value: p, Stack: debug.Stack()}
			}
		}()
		errs[i] = do(i)
	}
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			one(i)
		}
	}
	var others sync.WaitGroup
	for range threads - 1 {
		others.Go(work)
	}
	// The caller is bound to its thread, which runs already. Were it to wait here, another thread would have to be woken, and
	// the system may put two of those on one core for a while.
	work()
	others.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
