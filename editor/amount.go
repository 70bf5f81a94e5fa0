package editor

import (
	"math"
	"slices"
)

// amountScratch is memory for limitAmount.
type amountScratch struct {
	positions []int32
	which     []int32
	words     []uint64
	sorted    []uint64
	stream    drawStream
}

// limitAmount leaves of plan.found what EditProbability and then MaxEditRate let through, and counts the rest.
func (e *Editor) limitAmount(ep Epoch, d *Document, plan *Plan, counts *Counts) {
	before := len(plan.found)
	if e.policy.EditProbability < 1 {
		words := plan.candidateWords(ep, purposeProbability, d)
		kept := plan.found[:0]
		for c, f := range plan.found {
			if uniform(words[c]) < e.policy.EditProbability {
				kept = append(kept, f)
			}
		}
		plan.found = kept
	}
	if most := int(math.Floor(float64(e.policy.MaxEditRate * float64(len(d.IDs))))); most < len(plan.found) {
		e.choose(ep, d, plan, most)
	}
	counts.Unselected = int64(before - len(plan.found))
}

// choose leaves so many of plan.found: those of the highest P, or of the lowest random words; of equal ones the first.
func (e *Editor) choose(ep Epoch, d *Document, plan *Plan, most int) {
	var ranks []uint64 // lower is chosen before higher
	if e.policy.MaxEditOrder == OrderRandom {
		ranks = plan.candidateWords(ep, purposeOrder, d)
	} else {
		plan.amount.words = plan.amount.words[:0]
		for _, f := range plan.found {
			plan.amount.words = append(plan.amount.words, max(keyOf(d.Scores.LogP[f.pos]), leastRight)) // +0 is -0
		}
		ranks = plan.amount.words
	}
	sorted := append(plan.amount.sorted[:0], ranks...)
	plan.amount.sorted = sorted
	slices.Sort(sorted)
	kept := plan.found[:0]
	if most > 0 {
		limit := sorted[most-1]
		first, _ := slices.BinarySearch(sorted, limit)
		ties := most - first // so many that are equal to the limit
		for c, f := range plan.found {
			switch {
			case ranks[c] > limit:
				continue
			case ranks[c] == limit:
				if ties--; ties < 0 {
					continue
				}
			}
			kept = append(kept, f)
		}
	}
	plan.found = kept
}

// candidateWords gives a random word for each of plan.found.
func (plan *Plan) candidateWords(ep Epoch, purpose uint16, d *Document) []uint64 {
	a := &plan.amount
	a.positions, a.which = a.positions[:0], a.which[:0]
	for c, f := range plan.found {
		a.positions = append(a.positions, f.pos)
		a.which = append(a.which, int32(c))
	}
	a.words = slices.Grow(a.words[:0], len(plan.found))[:len(plan.found)]
	a.stream.reset(ep.key(purpose), d.Key, d.Offset)
	a.stream.fill(a.words, a.which, a.positions)
	return a.words
}
