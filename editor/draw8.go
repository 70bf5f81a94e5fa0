package editor

import "math"

// drawsEights says whether drawEights knows the policy.
func (e *Editor) drawsEights() bool {
	return e.policy.K == 8 && !e.policy.WholeWords && (e.nucleus == nil || e.policy.Temperature == 1)
}

// drawEights is draw's loop for a policy with k = 8, with a single branch
// that depends on chance: whether the token stays. It decides candidates from the c-th on, and stops at one
// that is not of the common kind: the old token is the most probable one and
// not repeated, none of the eight ids is barred, the eight log probabilities
// are finite float16 values, and their weights do not come near to vanishing.
// It returns that one's number, for drawOne.
//
// The additions are those of drawOne, in the same order.
func (e *Editor) drawEights(d *Document, plan *Plan, c int, expected *float64) int {
	weights, plain, barred := e.weights, e.plain, e.barred
	exclude := e.policy.ExcludeOriginal
	rejects := e.policy.RejectionTries > 0 && !exclude
	sure := uint64(0) // keys below it are the whole nucleus
	if e.nucleus != nil {
		sure = e.nucleus.alone
	}
	special := rejects || e.nucleus != nil
	k := d.Scores.K
	topPos, topIDs, topLogP := d.Scores.TopPos, d.Scores.TopIDs, d.Scores.TopLogP
	candidates := plan.candidates
	words := plan.words[:len(candidates)]
	edits := plan.Edits
	changes := len(edits)
	edits = edits[:cap(edits)]
	sum := *expected
	for ; c < len(candidates); c++ {
		j := int(candidates[c])
		pos := topPos[j]
		old := d.IDs[pos]
		ids := (*[8]int32)(topIDs[j*k:])
		if uint32(ids[0]) != old ||
			!eligible(plain, barred, ids[1], old) || !eligible(plain, barred, ids[2], old) || !eligible(plain, barred, ids[3], old) ||
			!eligible(plain, barred, ids[4], old) || !eligible(plain, barred, ids[5], old) || !eligible(plain, barred, ids[6], old) ||
			!eligible(plain, barred, ids[7], old) {
			break
		}
		logp := (*[8]float32)(topLogP[j*k:])
		i0 := halfIndex(math.Float32bits(logp[0]))
		s0 := weights[uint16(i0)]
		if logp[0] == 0 { // has no index, and is common
			i0, s0 = 0, 1
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
		if exclude {
			if s0 != s0 { // the sum would not show it
				break
			}
			s0 = 0
		}
		s1 := s0 + weights[uint16(i1)]
		s2 := s1 + weights[uint16(i2)]
		s3 := s2 + weights[uint16(i3)]
		s4 := s3 + weights[uint16(i4)]
		s5 := s4 + weights[uint16(i5)]
		s6 := s5 + weights[uint16(i6)]
		s7 := s6 + weights[uint16(i7)]
		if !(s7 >= leastSum) { // or NaN: no float16 value
			break
		}
		// The running sums do not fall, so before the first one above target
		// are those at or below it. target < s7, because u <= 1 - 2**-53.
		u := uniform(words[c])
		if special {
			// The old token is the whole nucleus, or stays for all that the proposals are worth; what else comes of either is rare.
			keep := 1.0
			if keyOf(d.Scores.LogP[pos]) >= sure {
				if !rejects || e.nucleus != nil {
					break
				}
				keep = power(s0/s7, e.policy.RejectionTries)
				if !(u < keep) {
					break
				}
			}
			sum += 1 - keep
			continue
		}
		target := float64(u * s7)
		sum += 1 - s0/s7
		if target >= s0 { // an edit: ids[1:] differ from old
			n := 1 + atLeast(target, s1) + atLeast(target, s2) + atLeast(target, s3) +
				atLeast(target, s4) + atLeast(target, s5) + atLeast(target, s6)
			edits[changes] = Edit{Pos: pos, Old: old, New: uint32(ids[n&7]), LogP: d.Scores.LogP[pos]}
			changes++
		}
	}
	plan.Edits = edits[:changes]
	*expected = sum
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
