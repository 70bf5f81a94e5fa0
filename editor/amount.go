package editor

import (
	"cmp"
	"math"
	"slices"
)

// amountScratch is memory for limitAmount.
type amountScratch struct {
	positions []int32
	which     []int32
	words     []uint64
	order     []int32
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
	a := &plan.amount
	a.order = a.order[:0]
	for c := range plan.found {
		a.order = append(a.order, int32(c))
	}
	if e.policy.MaxEditOrder == OrderRandom {
		words := plan.candidateWords(ep, purposeOrder, d)
		slices.SortFunc(a.order, func(x, y int32) int { return cmp.Or(cmp.Compare(words[x], words[y]), cmp.Compare(x, y)) })
	} else {
		logp := func(c int32) float32 { return d.Scores.LogP[plan.found[c].pos] }
		slices.SortFunc(a.order, func(x, y int32) int { return cmp.Or(cmp.Compare(logp(y), logp(x)), cmp.Compare(x, y)) })
	}
	chosen := a.order[:most]
	slices.Sort(chosen)
	for i, c := range chosen {
		plan.found[i] = plan.found[c] // c >= i
	}
	plan.found = plan.found[:most]
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
