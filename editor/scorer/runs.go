package scorer

import "sort"

// Run shapes.
//
// Rows are sorted by length and cut into runs of rows whose padded size stays under a budget: little padding, and runs
// large enough for efficient matrix products. A row's scores do not depend on the run that it lands in (the graph is
// causal, rows are padded on the right, and every operator works row by row), so this is a matter of speed only.
const (
	// lengthMultiple rounds a run's length up. It keeps matrix products away from one-row shapes, for which ONNX
	// Runtime may choose another kernel with other rounding.
	lengthMultiple = 8
	// tokenBudget bounds rows x length of a run. With more, what a run writes (its log-softmax above all) no longer
	// stays in a core's cache: the bundled prior took 72 µs a token at 2048 and 51 at 512, and no less below.
	tokenBudget = 512
)

// run is a set of rows that go through the model together, and the length that they are padded to.
type run struct {
	rows   []int // indices into the request's rows
	length int   // model positions of each row, padding included
}

// planRuns groups rows into runs. positions[i] is how many positions the model reads for row i, at most context; rows
// with none are left out. Padding stays within the context too: a model may have no positions beyond it. It returns the
// runs, longest rows first so that threads finish together, and the padded number of positions.
func planRuns(positions []int, context int) (runs []run, padded int) {
	order := make([]int, 0, len(positions))
	for i, n := range positions {
		if n > 0 {
			order = append(order, i)
		}
	}
	sort.SliceStable(order, func(a, b int) bool { return positions[order[a]] > positions[order[b]] })
	for start := 0; start < len(order); {
		length := min(roundUp(positions[order[start]], lengthMultiple), context)
		rows := max(1, tokenBudget/length)
		end := min(start+rows, len(order))
		runs = append(runs, run{rows: order[start:end], length: length})
		padded += (end - start) * length
		start = end
	}
	return runs, padded
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
