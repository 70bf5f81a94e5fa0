package capi

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"toedit/editor/scorer"
)

func TestInParallel(t *testing.T) {
	for _, threads := range []int{1, 2, 5} {
		for _, n := range []int{1, 2, 7} {
			var sum atomic.Int64
			require.NoError(t, inParallel(threads, n, func(i int) error { sum.Add(int64(1 + i)); return nil }))
			require.EqualValues(t, n*(n+1)/2, sum.Load())
		}
	}
	first, second := errors.New("first"), errors.New("second")
	require.Equal(t, first, inParallel(2, 3, func(i int) error { return []error{nil, first, second}[i] }))
	var panicked *scorer.PanicError
	require.ErrorAs(t, inParallel(2, 2, func(i int) error { panic("on purpose") }), &panicked)
	require.Equal(t, "on purpose", panicked.Value)
}
