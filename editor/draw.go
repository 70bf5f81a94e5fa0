package editor

import (
	"math"
	"slices"
)

// leastExponent: where the largest exponent is below it, all are taken
// relative to the largest, so that not every weight vanishes.
const leastExponent = -600

// leastSum is a sum that no weights have whose largest exponent is below
// leastExponent: MaxK * exp(-600) is about 1e-257.
const leastSum = 1e-250

// draw decides the candidates: plan.Edits and the rest of counts.
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
	expected := 0.0
	for c := 0; c < len(candidates); c++ {
		if e.policy.K == 8 {
			if c = e.drawEights(d, plan, c, &expected); c == len(candidates) {
				break
			}
		}
		j := int(candidates[c])
		pos := s.TopPos[j]
		old := d.IDs[pos]
		drawn, keep, err := e.drawOne(s, j, old, uniform(plan.words[c]), plan)
		if err != nil {
			return err
		}
		expected += 1 - keep
		if drawn != old {
			plan.Edits = append(plan.Edits, Edit{Pos: pos, Old: old, New: drawn, LogP: s.LogP[pos]})
		}
	}
	counts.Changes = int64(len(plan.Edits))
	counts.Expected = expected
	return nil
}

// drawOne draws the token for stored position j with the uniform number u. It
// returns the token and the probability of keeping the old one.
func (e *Editor) drawOne(s *Scores, j int, old uint32, u float64, plan *Plan) (uint32, float64, error) {
	k := e.policy.K
	ids := s.TopIDs[j*s.K:][:k]
	logp := s.TopLogP[j*s.K:][:k]
	plan.sums = slices.Grow(plan.sums[:0], k)[:k]
	sums := plan.sums

	barred, weights := e.barred, e.weights
	exclude := e.policy.ExcludeOriginal
	sum, ofOld := 0.0, 0.0
	damaged := false
	for i, id := range ids {
		if uint(uint32(id)) >= uint(len(barred)) {
			return 0, 0, scoresErrorf("topk_ids", "has id %d at position %d; the prior's vocabulary ends at %d: score again with this prior", id, s.TopPos[j], len(barred)-1)
		}
		w := weights.weight(logp[i])
		damaged = damaged || w != w
		if barred[uint32(id)] || exclude && uint32(id) == old {
			w = 0
		}
		sum += w
		if uint32(id) == old {
			ofOld += w
		}
		sums[i] = sum
	}
	if damaged {
		return 0, 0, whatIsDamaged(logp, s.TopPos[j])
	}
	if sum < leastSum {
		most := math.Inf(-1) // the largest log probability that may be drawn
		for i, id := range ids {
			if e.mayDraw(id, old) {
				most = max(most, float64(logp[i]))
			}
		}
		if math.IsInf(most, -1) {
			return old, 1, nil // nothing to draw from
		}
		if most/e.policy.Temperature < leastExponent {
			sum, ofOld = 0, 0
			for i, id := range ids {
				if e.mayDraw(id, old) {
					w := expNeg((float64(logp[i]) - most) / e.policy.Temperature)
					sum += w
					if uint32(id) == old {
						ofOld += w
					}
				}
				sums[i] = sum
			}
		}
	}
	return uint32(ids[pick(sums, float64(u*sum))]), ofOld / sum, nil
}

func (e *Editor) mayDraw(id int32, old uint32) bool {
	return !e.barred[id] && !(e.policy.ExcludeOriginal && uint32(id) == old)
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
