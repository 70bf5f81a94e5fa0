package editor

import "math"

// drawsEights says whether drawEights knows the policy.
func (e *Editor) drawsEights() bool { return e.policy.K <= 8 && !e.policy.WholeWords }

// drawEights is draw's loop for a policy with k up to 8 and scores that store as
// many as 8, with hardly a branch that depends on chance but whether the token
// stays. It decides candidates from the c-th on, and stops at one that is not of
// the common kind: the old token is the most probable one and not repeated, none
// of the eight ids is barred, the eight log probabilities are finite float16
// values, their weights do not come near to vanishing, and if proposals are
// rejected, none is accepted. It returns that one's number, for drawOne.
//
// The additions are those of drawOne, in the same order.
func (e *Editor) drawEights(d *Document, plan *Plan, c int, counts *Counts) int {
	weights, plain, barred := e.weights, e.plain, e.barred
	exclude := e.policy.ExcludeOriginal
	rejects := e.policy.RejectionTries > 0 && !exclude
	stored := d.Scores.K
	topPos, topIDs, topLogP := d.Scores.TopPos, d.Scores.TopIDs, d.Scores.TopLogP
	candidates := plan.candidates
	words := plan.words[:len(candidates)]
	edits := plan.Edits
	changes := len(edits)
	edits = edits[:cap(edits)]
	sum := counts.Expected
	for ; c < len(candidates); c++ {
		j := int(candidates[c])
		pos := topPos[j]
		old := d.IDs[pos]
		ids := (*[8]int32)(topIDs[j*stored:])
		if uint32(ids[0]) != old ||
			!eligible(plain, barred, ids[1], old) || !eligible(plain, barred, ids[2], old) || !eligible(plain, barred, ids[3], old) ||
			!eligible(plain, barred, ids[4], old) || !eligible(plain, barred, ids[5], old) || !eligible(plain, barred, ids[6], old) ||
			!eligible(plain, barred, ids[7], old) {
			break
		}
		logp := (*[8]float32)(topLogP[j*stored:])
		i0 := halfIndex(math.Float32bits(logp[0]))
		w0 := weights[uint16(i0)]
		if logp[0] == 0 { // has no index, and is common
			i0, w0 = 0, 1
		}
		i1 := halfIndex(math.Float32bits(logp[1]))
		i2 := halfIndex(math.Float32bits(logp[2]))
		i3 := halfIndex(math.Float32bits(logp[3]))
		i4 := halfIndex(math.Float32bits(logp[4]))
		i5 := halfIndex(math.Float32bits(logp[5]))
		i6 := halfIndex(math.Float32bits(logp[6]))
		i7 := halfIndex(math.Float32bits(logp[7]))
		if (i0|i1|i2|i3|i4|i5|i6|i7)>>16 != 0 {
			break
		}
		w1, w2, w3, w4 := weights[uint16(i1)], weights[uint16(i2)], weights[uint16(i3)], weights[uint16(i4)]
		w5, w6, w7 := weights[uint16(i5)], weights[uint16(i6)], weights[uint16(i7)]
		switch e.policy.K { // the choices behind the k-th weigh nothing
		case 1:
			w1 = 0
			fallthrough
		case 2:
			w2 = 0
			fallthrough
		case 3:
			w3 = 0
			fallthrough
		case 4:
			w4 = 0
			fallthrough
		case 5:
			w5 = 0
			fallthrough
		case 6:
			w6 = 0
			fallthrough
		case 7:
			w7 = 0
		}
		s0 := w0
		if exclude {
			if w0 != w0 { // the sum would not show it
				break
			}
			s0 = 0
		}
		s1 := s0 + w1
		s2 := s1 + w2
		s3 := s2 + w3
		s4 := s3 + w4
		s5 := s4 + w5
		s6 := s5 + w6
		s7 := s6 + w7
		if !(s7 >= leastSum) { // or NaN: no float16 value
			break
		}
		total := s7
		if e.nucleus != nil {
			size, known := e.nucleus.ofEight([8]float64{w0, w1, w2, w3, w4, w5, w6, w7}, logp, e.policy.K, d.Scores.LogP[pos])
			if !known {
				counts.Truncated++
				continue
			}
			total = [8]float64{s0, s1, s2, s3, s4, s5, s6, s7}[(size-1)&7]
			if total < leastSum {
				if size == 1 && exclude {
					continue // nothing to draw from
				}
				break
			}
		}
		u := uniform(words[c])
		if rejects {
			keep := power(s0/total, e.policy.RejectionTries)
			if !(u < keep) {
				break
			}
			sum += 1 - keep
			continue
		}
		// The running sums do not fall, so before the first one above target
		// are those at or below it. target < total, because u <= 1 - 2**-53.
		target := float64(u * total)
		sum += 1 - s0/total
		if target >= s0 { // an edit: ids[1:] differ from old
			n := 1 + atLeast(target, s1) + atLeast(target, s2) + atLeast(target, s3) +
				atLeast(target, s4) + atLeast(target, s5) + atLeast(target, s6)
			edits[changes] = Edit{Pos: pos, Old: old, New: uint32(ids[n&7]), LogP: d.Scores.LogP[pos], Band: e.bands[0].index}
			changes++
		}
	}
	plan.Edits = edits[:changes]
	counts.Expected = sum
	return c
}

// eligible says whether id can be drawn and is not old.
func eligible(plain idRange, barred []bool, id int32, old uint32) bool {
	return uint32(id) != old && (plain.has(uint32(id)) || uint(uint32(id)) < uint(len(barred)) && !barred[uint32(id)])
}

// atLeast is 1 where a >= b, else 0; the compiler makes no branch of it.
func atLeast(a, b float64) int {
	if a >= b {
		return 1
	}
	return 0
}
