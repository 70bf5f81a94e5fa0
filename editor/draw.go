package editor

import (
	"math"
	"slices"

	"toedit/editor/vocab"
)

// leastExponent: where the largest exponent is below it, all are taken
// relative to the largest, so that not every weight vanishes.
const leastExponent = -600

// leastSum is a sum that no weights have whose largest exponent is below
// leastExponent: MaxK * exp(-600) is about 1e-257.
const leastSum = 1e-250

// draw draws the candidates in plan.candidates: plan.Edits and what of counts comes of them.
func (e *Editor) draw(ep Epoch, d *Document, plan *Plan, counts *Counts) error {
	s := &d.Scores
	candidates := plan.candidates
	if len(candidates) == 0 {
		return nil
	}
	stream := &plan.stream
	stream.reset(ep.key(purposeDraw), d.Key, d.Offset)
	plan.words = slices.Grow(plan.words[:0], len(candidates))[:len(candidates)]
	stream.fill(plan.words, candidates, s.TopPos)
	plan.Edits = slices.Grow(plan.Edits[:0], len(candidates))
	eights := e.hasEights(s)
	if eights {
		e.listEights(d, plan)
	}
	for c := 0; c < len(candidates); c++ {
		if eights {
			c = e.drawEights(d, plan, c, counts)
		}
		if c == len(candidates) {
			break
		}
		j := int(candidates[c])
		pos := s.TopPos[j]
		old := d.IDs[pos]
		drawn, err := e.drawOne(s, j, old, uniform(plan.words[c]), plan)
		if err != nil {
			return err
		}
		counts.Expected += 1 - drawn.keep
		if drawn.truncated {
			counts.Truncated++
		}
		if drawn.id != old {
			plan.Edits = append(plan.Edits, Edit{Pos: pos, Old: old, New: drawn.id, LogP: s.LogP[pos], Band: e.bands[0].index})
		}
	}
	counts.Changes = int64(len(plan.Edits))
	return nil
}

// outcome is what a draw gave.
type outcome struct {
	id        uint32
	keep      float64 // probability of keeping the old one
	truncated bool    // it stays because the nucleus could not be found
}

// drawOne draws the token for stored position j with the uniform number u.
func (e *Editor) drawOne(s *Scores, j int, old uint32, u float64, plan *Plan) (outcome, error) {
	k := e.policy.K
	ids := s.TopIDs[j*s.K:][:k]
	logp := s.TopLogP[j*s.K:][:k]
	plan.sums = slices.Grow(plan.sums[:0], 2*k)[:2*k]
	weights, sums := plan.sums[:k], plan.sums[k:]
	barred, table := e.barred, e.weights
	stays := outcome{id: old, keep: 1}

	damaged := false
	for i, id := range ids {
		if uint(uint32(id)) >= uint(len(barred)) {
			return stays, scoresErrorf("topk_ids", "has id %d at position %d; the prior's vocabulary ends at %d: score again with this prior", id, s.TopPos[j], len(barred)-1)
		}
		w := table.weight(logp[i])
		damaged = damaged || w != w
		weights[i] = w
	}
	if damaged {
		return stays, whatIsDamaged(logp, s.TopPos[j])
	}
	if e.nucleus != nil {
		size, ok := e.nucleus.size(ids, logp, weights, old, s.LogP[s.TopPos[j]])
		if !ok {
			stays.truncated = true
			return stays, nil
		}
		ids, logp, weights, sums = ids[:size], logp[:size], weights[:size], sums[:size]
	}
	sum, ofOld := e.addUp(sums, weights, ids, old)
	if sum < leastSum {
		most := math.Inf(-1) // the largest log probability that may be drawn
		for i, id := range ids {
			if e.mayDraw(id, old) {
				most = max(most, float64(logp[i]))
			}
		}
		if math.IsInf(most, -1) {
			return stays, nil // nothing to draw from
		}
		if most/e.policy.Temperature < leastExponent {
			for i := range ids {
				weights[i] = expNeg(min(0, (float64(logp[i])-most)/e.policy.Temperature))
			}
			sum, ofOld = e.addUp(sums, weights, ids, old)
		}
	}
	if e.policy.RejectionTries == 0 {
		return outcome{id: uint32(ids[pick(sums, float64(u*sum))]), keep: ofOld / sum}, nil
	}
	return e.propose(ids, sums, weights, old, ofOld/sum, u), nil
}

// addUp makes running sums of the weights of the choices that may be drawn, and returns the last one and the old id's
// weight. The weights of those that may not become 0.
func (e *Editor) addUp(sums, weights []float64, ids []int32, old uint32) (sum, ofOld float64) {
	for i, id := range ids {
		if !e.mayDraw(id, old) {
			weights[i] = 0
		}
		sum += weights[i]
		if uint32(id) == old {
			ofOld += weights[i]
		}
		sums[i] = sum
	}
	return sum, ofOld
}

// propose is the outcome of proposals that are rejected while they are the old id, which has the share q of the weights. The
// old id is left with the probability that all of them are, and the others share the rest in proportion to their weights: one
// random number decides as those of all the proposals would.
func (e *Editor) propose(ids []int32, sums, weights []float64, old uint32, q, u float64) outcome {
	stays := outcome{id: old, keep: power(q, e.policy.RejectionTries)}
	if u < stays.keep {
		return stays
	}
	sum := 0.0
	last := -1
	for i, id := range ids {
		if uint32(id) != old && weights[i] > 0 {
			sum += weights[i]
			last = i
		}
		sums[i] = sum
	}
	if last < 0 {
		return stays
	}
	// Rounding can bring the target up to the sum, which the last choice that has a weight then answers for.
	target := float64((u - stays.keep) / (1 - stays.keep) * sum)
	return outcome{id: uint32(ids[min(pick(sums, target), last)]), keep: stays.keep}
}

// power is q to the n-th, multiplied one by one.
func power(q float64, n int) float64 {
	product := 1.0
	for range n {
		product = float64(product * q)
	}
	return product
}

func (e *Editor) mayDraw(id int32, old uint32) bool {
	return !e.barred[id] && !(e.policy.ExcludeOriginal && uint32(id) == old) && !(e.policy.WholeWords && !e.sameBoundary(uint32(id), old))
}

// sameBoundary says whether both tokens begin a word, or continue one, or do neither.
func (e *Editor) sameBoundary(a, b uint32) bool {
	const boundary = vocab.BeginsWord | vocab.Continues
	text := e.vocabulary.Text
	return text.Traits(a)&boundary == text.Traits(b)&boundary
}

// pick is the first index whose running sum is above target, which is the
// product of the last sum and a uniform number.
//
// There is one, and it has a weight: a uniform number is at most 1 - 2**-53,
// and its product with a normal number S at most S - S*2**-53, which is below
// the middle between S and the float64 before it unless S is a power of two,
// and then is that float64. Either way it is rounded to less than S.
func pick(sums []float64, target float64) int {
	for i, sum := range sums {
		if target < sum {
			return i
		}
	}
	return len(sums) - 1
}

// whatIsDamaged finds what is no log probability in float16 in logp.
func whatIsDamaged(logp []float32, pos int32) error {
	for _, v := range logp {
		if !(v <= 0) {
			return scoresErrorf("topk_logp", "has %v at position %d; a log probability is 0 or below: score again", v, pos)
		}
		if !exactHalf(v) {
			return scoresErrorf("topk_logp", "has %v at position %d, which is no float16 value; stored scores are rounded to the nearest one: round them, or score again", v, pos)
		}
	}
	return nil
}
