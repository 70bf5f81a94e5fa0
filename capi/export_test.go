package capi

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLargeBuffersAreReused(t *testing.T) {
	trackUsage(t)
	before := GetUsage().AllocatedBytes
	const mib = 1 << 20
	b, _ := newBuffer[byte](256 * mib) // what tests before left gives way, and so much is not kept
	b.free()

	b, _ = newBuffer[byte](8 * mib)
	first := b.pointer
	b.free()
	require.Equal(t, before, GetUsage().AllocatedBytes, "what is kept is in nobody's use")
	small, _ := newBuffer[byte](mib)
	assert.NotEqual(t, first, small.pointer)
	again, _ := newBuffer[int64](6 * mib / 8)
	assert.Equal(t, first, again.pointer)
	require.Equal(t, before+7*mib, GetUsage().AllocatedBytes)
	other, values := newBuffer[byte](8 * mib)
	assert.NotEqual(t, first, other.pointer)
	values[8*mib-1] = 1
	for _, b := range []buffer{small, again, other} {
		b.free()
	}

	// A block that is too small, or much too large, gives way.
	b, values = newBuffer[byte](48 * mib)
	values[48*mib-1] = 1
	b.free()
	b, values = newBuffer[byte](5 * mib)
	values[5*mib-1] = 1
	b.free()
	again, _ = newBuffer[byte](5 * mib)
	assert.Equal(t, b.pointer, again.pointer)
	again.free()
}

// No two buffers that are in use share memory, whoever takes and gives back at the same time.
func TestBuffersOfManyThreads(t *testing.T) {
	trackUsage(t)
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			mine := int64(g + 1)
			for range 300 {
				n := (4 + r.IntN(8)) << 20 / 8
				b, values := newBuffer[int64](n)
				for i := 0; i < n; i += 4096 {
					values[i] = mine
				}
				for i := 0; i < n; i += 4096 {
					if values[i] != mine {
						t.Errorf("value %d of a buffer is %d", i, values[i])
						return
					}
				}
				b.free()
			}
		})
	}
	all.Wait()
}
