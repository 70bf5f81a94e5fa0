package scorer

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor/prior"
)

func TestPlanRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		context := []int{2, 7, 8, 100, 512, 1024, 4096}[r.IntN(7)]
		positions := make([]int, r.IntN(200))
		for i := range positions {
			positions[i] = r.IntN(min(context, 1+r.IntN(context)) + 1)
		}
		runs, padded := planRuns(positions, context)
		var rows []int
		total, last := 0, context
		for _, run := range runs {
			require.NotEmpty(t, run.rows)
			longest := 0
			for _, i := range run.rows {
				require.Positive(t, positions[i], "rows without positions are left out")
				longest = max(longest, positions[i])
			}
			require.GreaterOrEqual(t, run.length, longest)
			require.Less(t, run.length-longest, lengthMultiple, "no longer than needed")
			require.LessOrEqual(t, run.length, context)
			require.True(t, run.length%lengthMultiple == 0 || run.length == context)
			require.True(t, len(run.rows) == 1 || len(run.rows)*run.length <= tokenBudget)
			require.LessOrEqual(t, run.length, last, "longest first")
			last = run.length
			rows = append(rows, run.rows...)
			total += len(run.rows) * run.length
		}
		require.Equal(t, total, padded)
		slices.Sort(rows)
		var want []int
		for i, n := range positions {
			if n > 0 {
				want = append(want, i)
			}
		}
		require.Equal(t, want, rows, "every row once")
	}
}

// Equal lengths keep their order, and runs are filled: as few as the budget allows.
func TestPlanRunsFillsRuns(t *testing.T) {
	runs, padded := planRuns(slices.Repeat([]int{100}, 50), 512)
	perRun := tokenBudget / 104
	require.Len(t, runs, (50+perRun-1)/perRun)
	next := 0
	for _, run := range runs {
		assert.Equal(t, 104, run.length)
		for _, i := range run.rows {
			assert.Equal(t, next, i)
			next++
		}
	}
	assert.Equal(t, 50*104, padded)
	runs, padded = planRuns(nil, 512)
	assert.Empty(t, runs)
	assert.Zero(t, padded)
	runs, _ = planRuns([]int{0, 0}, 512)
	assert.Empty(t, runs)
	runs, _ = planRuns([]int{4000, 1}, 4096)
	assert.Equal(t, []run{{[]int{0}, 4000}, {[]int{1}, 8}}, runs, "a row above the budget runs alone")
}

func TestLayoutOf(t *testing.T) {
	id := uint32(7)
	for _, c := range []struct {
		rule string
		row  []uint32
		want layout
	}{
		{"always", nil, layout{}},
		{"always", []uint32{1}, layout{prefix: true, positions: 1}},
		{"always", []uint32{7}, layout{}},
		{"always", []uint32{1, 7}, layout{prefix: true, positions: 2}},
		{"always", []uint32{7, 1}, layout{positions: 1}},
		{"always", []uint32{1, 2, 3, 4, 5}, layout{prefix: true, positions: 5}},
		{"always", []uint32{1, 2, 3, 4, 5, 6}, layout{prefix: true, positions: 5}},
		{"always", []uint32{7, 2, 3, 4, 5, 6}, layout{positions: 5}},
		{"always", []uint32{7, 2, 3, 4, 5, 6, 8}, layout{positions: 5}},
		{"never", nil, layout{}},
		{"never", []uint32{1}, layout{}},
		{"never", []uint32{1, 2}, layout{positions: 1}},
		{"never", []uint32{7, 2}, layout{positions: 1}},
		{"never", []uint32{1, 2, 3, 4, 5, 6}, layout{positions: 5}},
		{"never", []uint32{1, 2, 3, 4, 5, 6, 7}, layout{positions: 5}},
	} {
		p := &prior.Prior{ContextLength: 5, BOS: prior.BOS{Rule: c.rule, ID: &id}}
		assert.Equal(t, c.want, layoutOf(p, c.row), "%s %v", c.rule, c.row)
	}
	assert.Equal(t, layout{positions: 1}, layoutOf(&prior.Prior{ContextLength: 5, BOS: prior.BOS{Rule: "never"}}, []uint32{0, 0}))
}
