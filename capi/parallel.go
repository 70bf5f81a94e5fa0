package capi

import (
	"runtime/debug"
	"sync"

	"toedit/editor/scorer"
)

// inParallel calls do(0) to do(n-1), each in a goroutine of its own, and returns the error of the lowest number. A panic in
// any of them is the caller's, who can recover from it.
func inParallel(n int, do func(i int) error) error {
	if n == 1 {
		return do(0)
	}
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					errs[i] = &scorer.PanicError{Value: p, Stack: debug.Stack()}
				}
			}()
			errs[i] = do(i)
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
