package editor

import "math"

// Policies with k up to 8, over scores that store as many as 8, have ways of
// their own for candidates of the common kind: the old token is the most probable
// one and not repeated, none of the eight ids is barred, the eight log
// probabilities are finite float16 values, and their weights do not come near to
// vanishing. Each decides candidates from the c-th on, stops at one that is not of
// that kind, and returns its number, for drawOne. The additions are those of
// drawOne, in the same order.

// eights is the way for some scores.
func (e *Editor) eights(s *Scores) int {
	switch {
	case s.K < 8 || e.policy.K > 8 || e.policy.WholeWords:
		return noEights
	case e.policy.K < 8 || e.nucleus != nil || e.policy.RejectionTries > 0:
		return otherEights
	}
	return plainEights
}

const (
	noEights    = iota // drawOne alone
	plainEights        // drawEights
	otherEights        // drawOtherEights
)

// drawEights is the way for k = 8 without nucleus and rejection. It has hardly a
// branch that depends on chance but whether the token stays.
func (e *Editor) drawEights(d *Document, plan *Plan, c int, counts *Counts) int {
	weights, plain, barred := e.weights, e.plain, e.barred
	exclude := e.policy.ExcludeOriginal
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
		target := float64(uniform(words[c]) * s7)
		sum += 1 - s0/s7
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

// eight are the eight choices of a candidate.
type eight struct {
	index   [8]uint16  // in the table of weights
	weights [8]float64 // behind the k-th 0
	running [8]float64 // their sums, the old id's weight left out where it is excluded
	reached [8]float64 // their sums with the old id's weight as it is without rounding
}

// drawOtherEights is the way for smaller k, nuclei and rejection.
func (e *Editor) drawOtherEights(d *Document, plan *Plan, c int, counts *Counts) int {
	s := &d.Scores
	rejects := e.policy.RejectionTries > 0 && !e.policy.ExcludeOriginal
	edits := plan.Edits
	changes := len(edits)
	edits = edits[:cap(edits)]
	var x eight
	for ; c < len(plan.candidates); c++ {
		j := int(plan.candidates[c])
		pos := s.TopPos[j]
		old, own := d.IDs[pos], s.LogP[pos]
		ids, logp := (*[8]int32)(s.TopIDs[j*s.K:]), (*[8]float32)(s.TopLogP[j*s.K:])
		if !e.readEight(&x, ids, logp, old) {
			break
		}
		total := x.running[7]
		if e.nucleus != nil {
			size, known := e.nucleus.ofEight(&x, e.policy.K, logp[e.policy.K-1], own)
			if !known {
				counts.Truncated++
				continue
			}
			if size == 1 && e.policy.ExcludeOriginal {
				continue // nothing to draw from
			}
			total = x.running[(size-1)&7]
		}
		if !(total >= leastSum) {
			break
		}
		u := uniform(plan.words[c])
		first := x.running[0]
		keep := first / total
		target := float64(u * total)
		stays := target < first
		if rejects {
			keep = power(keep, e.policy.RejectionTries)
			if stays = u < keep; !stays {
				if e.nucleus != nil {
					break
				}
				x.addUp(&x.running, 0)
				target = float64((u - keep) / (1 - keep) * x.running[7])
				if target >= x.running[7] { // by rounding
					break
				}
			}
		}
		counts.Expected += 1 - keep
		if !stays {
			r := &x.running
			n := 1 + atLeast(target, r[1]) + atLeast(target, r[2]) + atLeast(target, r[3]) +
				atLeast(target, r[4]) + atLeast(target, r[5]) + atLeast(target, r[6])
			edits[changes] = Edit{Pos: pos, Old: old, New: uint32(ids[n&7]), LogP: own, Band: e.bands[0].index}
			changes++
		}
	}
	plan.Edits = edits[:changes]
	return c
}

// readEight reads the choices of a candidate, and says whether it is of the common kind but for vanishing weights.
func (e *Editor) readEight(x *eight, ids *[8]int32, logp *[8]float32, old uint32) bool {
	if uint32(ids[0]) != old {
		return false
	}
	plain, barred, weights := e.plain, e.barred, e.weights
	if !eligible(plain, barred, ids[1], old) || !eligible(plain, barred, ids[2], old) || !eligible(plain, barred, ids[3], old) ||
		!eligible(plain, barred, ids[4], old) || !eligible(plain, barred, ids[5], old) || !eligible(plain, barred, ids[6], old) ||
		!eligible(plain, barred, ids[7], old) {
		return false
	}
	i0 := halfIndex(math.Float32bits(logp[0]))
	w0 := weights[uint16(i0)]
	if logp[0] == 0 { // has no index, and is common
		i0, w0 = 0, 1
	}
	i1, w1 := weights.at(logp[1])
	i2, w2 := weights.at(logp[2])
	i3, w3 := weights.at(logp[3])
	i4, w4 := weights.at(logp[4])
	i5, w5 := weights.at(logp[5])
	i6, w6 := weights.at(logp[6])
	i7, w7 := weights.at(logp[7])
	if (i0|i1|i2|i3|i4|i5|i6|i7)>>16 != 0 || w0 != w0 {
		return false
	}
	at := &x.index
	at[1], at[2], at[3], at[4], at[5], at[6], at[7] = uint16(i1), uint16(i2), uint16(i3), uint16(i4), uint16(i5), uint16(i6), uint16(i7)
	w := &x.weights
	w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7] = w0, w1, w2, w3, w4, w5, w6, w7
	for i := e.policy.K; i < 8; i++ {
		x.weights[i] = 0
	}
	first := w0
	if e.policy.ExcludeOriginal {
		first = 0
	}
	x.addUp(&x.running, first)
	return x.running[7] == x.running[7] // else one is no float16 value
}

// addUp makes running sums of the weights, with another first one.
func (x *eight) addUp(to *[8]float64, first float64) {
	w := &x.weights
	s1 := first + w[1]
	s2 := s1 + w[2]
	s3 := s2 + w[3]
	s4 := s3 + w[4]
	s5 := s4 + w[5]
	s6 := s5 + w[6]
	// One after the other: an array as a whole would be made elsewhere and copied.
	to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7] = first, s1, s2, s3, s4, s5, s6, s6+w[7]
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
