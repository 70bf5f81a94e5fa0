package scorer

import "sort"

// Run shapes.
//
// Pieces are sorted by length and cut into runs whose padded size stays under a budget: little padding, and runs large
// enough for efficient matrix products. A piece's scores do not depend on the run that it lands in (the graph is causal,
// rows are padded on the right, and every operator works row by row), so this is a matter of speed only.
const (
	// lengthMultiple rounds a run's length up. It keeps matrix products away from one-row shapes, for which ONNX
	// Runtime may choose another kernel with other rounding.
	lengthMultiple = 8
	// tokenBudget bounds rows x length of a run on the CPU. With more, what a run writes (its log-softmax above all) no
	// longer stays in a core's cache: the bundled prior took 72 µs a token at 2048 and 51 at 512, and no less below.
	tokenBudget = 512
	// cudaBudget is the same on a card, which wants large products.
	cudaBudget = 16384
	// shortestBucket is the least length of a run on a card; the next ones are twice as long each.
	shortestBucket = 64
)

// shapes says which run shapes there are.
type shapes struct {
	context int   // the most positions of a row
	least   int   // the least length that rows are padded to
	fixed   bool  // one shape for each length bucket, so that kernels and their rounding follow from the piece alone
	memory  int64 // bytes that one run may take, about; at least one row is run whatever it takes
	need    func(rows, length int) int64
	most    map[int]int // rows of a length that there was memory for, where that is fewer than memory lets expect
}

// run is a set of pieces that go through the model together.
type run struct {
	pieces []int // indices of pieces
	length int   // model positions of each, padding included
	batch  int   // rows of the model's input, at least as many as pieces
}

// length is what a piece of some positions is padded to. It stays within the context: a model may have no positions
// beyond it.
func (s *shapes) length(positions int) int {
	if !s.fixed {
		return min(max(roundUp(positions, lengthMultiple), s.least), s.context)
	}
	length := max(shortestBucket, s.least)
	for length < positions {
		length *= 2
	}
	return min(length, s.context)
}

// rows is how many rows of a length make a run.
func (s *shapes) rows(length int) int {
	budget := tokenBudget
	if s.fixed {
		budget = cudaBudget
	}
	rows := max(1, budget/length)
	for rows > 1 && s.need(rows, length) > s.memory {
		rows /= 2
	}
	if most, ok := s.most[length]; ok {
		rows = min(rows, most)
	}
	return rows
}

// plan groups pieces into runs, longest first so that threads finish together. positions[i] is how many positions the model
// reads for piece i, 1 to the context.
func (s *shapes) plan(positions []int) (runs []run) {
	order := make([]int, len(positions))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return positions[order[a]] > positions[order[b]] })
	for start := 0; start < len(order); {
		length := s.length(positions[order[start]])
		rows := s.rows(length)
		end := start + 1
		for end < len(order) && end-start < rows && (!s.fixed || s.length(positions[order[end]]) == length) {
			end++
		}
		r := run{pieces: order[start:end], length: length, batch: end - start}
		if s.fixed {
			r.batch = rows
		}
		runs = append(runs, r)
		start = end
	}
	return runs
}

func roundUp(n, multiple int) int { return (n + multiple - 1) / multiple * multiple }
