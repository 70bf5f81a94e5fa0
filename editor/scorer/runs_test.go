package scorer

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// noLimit are the shapes of a CPU without a bound on memory.
func noLimit(context int) *shapes {
	return &shapes{context: context, memory: math.MaxInt64, need: func(rows, length int) int64 { return int64(rows * length) }}
}

func TestPlanRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		s := noLimit([]int{2, 7, 8, 100, 512, 1024, 4096}[r.IntN(7)])
		s.least = min([]int{0, 0, 72}[r.IntN(3)], s.context)
		s.fixed = r.IntN(3) == 0
		if r.IntN(3) == 0 {
			s.memory = int64(1 + r.IntN(2*s.context))
		}
		budget := tokenBudget
		if s.fixed {
			budget = cudaBudget
		}
		positions := make([]int, r.IntN(200))
		for i := range positions {
			positions[i] = 1 + r.IntN(min(s.context, 1+r.IntN(s.context)))
		}
		runs := s.plan(positions)
		var pieces []int
		last := s.context
		batches := map[int]int{}
		for _, run := range runs {
			require.NotEmpty(t, run.pieces)
			longest := 0
			for _, i := range run.pieces {
				longest = max(longest, positions[i])
				if s.fixed {
					require.Equal(t, run.length, s.length(positions[i]), "the shape follows from the piece alone")
				}
			}
			require.Equal(t, run.length, s.length(longest))
			require.GreaterOrEqual(t, run.length, longest)
			require.LessOrEqual(t, run.length, s.context)
			require.GreaterOrEqual(t, run.length, s.least)
			require.GreaterOrEqual(t, run.batch, len(run.pieces))
			require.True(t, run.batch == 1 || run.batch*run.length <= min(budget, int(min(s.memory, math.MaxInt32))))
			if s.fixed {
				if known, ok := batches[run.length]; ok {
					require.Equal(t, known, run.batch, "one shape for a length")
				}
				batches[run.length] = run.batch
			} else {
				require.Equal(t, len(run.pieces), run.batch)
				require.Less(t, run.length-max(longest, s.least), lengthMultiple, "no longer than needed")
			}
			require.LessOrEqual(t, run.length, last, "longest first")
			last = run.length
			pieces = append(pieces, run.pieces...)
		}
		slices.Sort(pieces)
		require.Len(t, pieces, len(positions))
		for i, piece := range pieces {
			require.Equal(t, i, piece, "every piece once")
		}
	}
}

// Equal lengths keep their order, and runs are filled: as few as the budget allows.
func TestPlanRunsFillsRuns(t *testing.T) {
	runs := noLimit(512).plan(slices.Repeat([]int{100}, 50))
	perRun := tokenBudget / 104
	require.Len(t, runs, (50+perRun-1)/perRun)
	next := 0
	for _, run := range runs {
		assert.Equal(t, 104, run.length)
		for _, i := range run.pieces {
			assert.Equal(t, next, i)
			next++
		}
	}
	assert.Empty(t, noLimit(512).plan(nil))
	runs = noLimit(4096).plan([]int{4000, 1})
	assert.Equal(t, []run{{[]int{0}, 4000, 1}, {[]int{1}, 8, 1}}, runs, "a row above the budget runs alone")
}

// A bound on memory makes runs of fewer rows, down to one.
func TestPlanRunsWithinMemory(t *testing.T) {
	s := noLimit(512)
	s.memory = 250
	runs := s.plan(slices.Repeat([]int{100}, 10))
	require.Len(t, runs, 5)
	assert.Len(t, runs[0].pieces, 2)
	s.memory = 1
	runs = s.plan(slices.Repeat([]int{100}, 10))
	assert.Len(t, runs, 10)
}

// On a card lengths are doubled from bucket to bucket, up to the context, whatever that is.
func TestBucketsOfACard(t *testing.T) {
	s := noLimit(1000)
	s.fixed = true
	for positions, want := range map[int]int{1: 64, 64: 64, 65: 128, 129: 256, 512: 512, 513: 1000, 1000: 1000} {
		assert.Equal(t, want, s.length(positions))
	}
	assert.Equal(t, cudaBudget/128, s.rows(128))
	s.context = 40
	assert.Equal(t, 40, s.length(3))
}
