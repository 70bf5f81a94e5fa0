package editor

import "math"

// drawEights decides candidates from the c-th on, stops at one that is not of
// the common kind (eights.go) or whose weights come near to vanishing, and
// returns its number, for drawOne. The additions are those of drawOne, in the
// same order.
func (e *Editor) drawEights(d *Document, plan *Plan, c int, counts *Counts) int {
	if e.nucleus != nil {
		return e.drawNuclei(d, plan, c, counts)
	}
	return e.drawPlain(d, plan, c, counts)
}

// drawPlain is the way without a nucleus. It has hardly a branch that depends on chance but whether the token stays.
func (e *Editor) drawPlain(d *Document, plan *Plan, c int, counts *Counts) int {
	weights := e.weights
	exclude := e.policy.ExcludeOriginal
	tries := e.rejections()
	candidates := plan.candidates
	words := plan.words[:len(candidates)]
	eights := plan.eights[:len(candidates)]
	common := plan.common[:len(candidates)]
	edits := plan.Edits
	changes := len(edits)
	edits = edits[:cap(edits)]
	sum := counts.Expected
	for ; c < len(candidates) && common[c]; c++ {
		x := &eights[c]
		s0 := weights[x[0]]
		if exclude {
			if s0 != s0 { // the sum would not show it
				break
			}
			s0 = 0
		}
		s1 := s0 + weights[x[1]]
		s2 := s1 + weights[x[2]]
		s3 := s2 + weights[x[3]]
		s4 := s3 + weights[x[4]]
		s5 := s4 + weights[x[5]]
		s6 := s5 + weights[x[6]]
		s7 := s6 + weights[x[7]]
		if !(s7 >= leastSum) { // or NaN: no float16 value
			break
		}
		// The running sums do not fall, so before the first one above target
		// are those at or below it. target < s7, because u <= 1 - 2**-53.
		u := uniform(words[c])
		keep := s0 / s7
		n := 0
		if tries == 0 {
			target := float64(u * s7)
			if target >= s0 { // an edit: the other ids differ from old
				n = 1 + atLeast(target, s1) + atLeast(target, s2) + atLeast(target, s3) +
					atLeast(target, s4) + atLeast(target, s5) + atLeast(target, s6)
			}
		} else {
			keep = power(keep, tries)
			if u >= keep {
				if n = other(weights, x, (u-keep)/(1-keep)); n == 0 {
					break
				}
			}
		}
		sum += 1 - keep
		if n > 0 {
			edits[changes] = e.editOf(d, int(candidates[c]), n)
			changes++
		}
	}
	plan.Edits = edits[:changes]
	counts.Expected = sum
	return c
}

// other is the choice, the first one aside, at share u of their weights; 0 where rounding brings it to the end of them.
func other(weights *halfWeights, x *eight, u float64) int {
	s1 := weights[x[1]]
	s2 := s1 + weights[x[2]]
	s3 := s2 + weights[x[3]]
	s4 := s3 + weights[x[4]]
	s5 := s4 + weights[x[5]]
	s6 := s5 + weights[x[6]]
	s7 := s6 + weights[x[7]]
	target := float64(u * s7)
	if target >= s7 {
		return 0
	}
	return 1 + atLeast(target, s1) + atLeast(target, s2) + atLeast(target, s3) + atLeast(target, s4) + atLeast(target, s5) + atLeast(target, s6)
}

// rejections is how often a proposal is rejected; 0 also where the old id, the reason for it, is never proposed.
func (e *Editor) rejections() int {
	if e.policy.ExcludeOriginal {
		return 0
	}
	return e.policy.RejectionTries
}

// editOf is the edit that puts the n-th choice of stored position j, which is not the old id.
func (e *Editor) editOf(d *Document, j, n int) Edit {
	s := &d.Scores
	pos := s.TopPos[j]
	return Edit{Pos: pos, Old: d.IDs[pos], New: uint32(s.TopIDs[j*s.K+n]), LogP: s.LogP[pos], Band: e.bands[0].index}
}

// choices are the weights of a candidate's choices, most probable first, 0 behind the k-th.
type choices struct {
	index   *eight
	weights [8]float64
	running [8]float64 // their sums, the old id's weight left out where it is excluded
	reached [8]float64 // their sums with the old id's weight as it is without rounding
}

// drawNuclei is the way with a nucleus.
func (e *Editor) drawNuclei(d *Document, plan *Plan, c int, counts *Counts) int {
	s := &d.Scores
	exclude := e.policy.ExcludeOriginal
	tries := e.rejections()
	edits := plan.Edits
	changes := len(edits)
	edits = edits[:cap(edits)]
	var x choices
	r := &x.running
	for ; c < len(plan.candidates) && plan.common[c]; c++ {
		j := int(plan.candidates[c])
		if !x.read(&plan.eights[c], e.weights, exclude) {
			break
		}
		// Whether a nucleus is known is much like chance, and is found out late: a branch there would be as expensive as all
		// the rest. So what is not known is decided like the others, and counts for nothing.
		size, known := e.nucleus.ofEight(&x, s, j, plan.own[c*e.nucleus.exponentials:])
		if size == 1 && exclude {
			counts.Truncated += int64(1 - known)
			continue // nothing to draw from
		}
		total := r[(size-1)&7]
		if !(total >= leastSum) {
			break
		}
		u := uniform(plan.words[c])
		keep := r[0] / total
		target := float64(u * total)
		changed := known & atLeast(target, r[0])
		if tries > 0 {
			keep = power(keep, tries)
			if changed = known & atLeast(u, keep); changed != 0 {
				x.addUp(0)
				total = r[(size-1)&7]
				target = float64((u - keep) / (1 - keep) * total)
				if target >= total { // by rounding
					break
				}
			}
		}
		counts.Truncated += int64(1 - known)
		counts.Expected += math.Float64frombits(math.Float64bits(1-keep) & -uint64(known))
		if changed != 0 {
			n := 1 + atLeast(target, r[1]) + atLeast(target, r[2]) + atLeast(target, r[3]) +
				atLeast(target, r[4]) + atLeast(target, r[5]) + atLeast(target, r[6])
			edits[changes] = e.editOf(d, j, n)
			changes++
		}
	}
	plan.Edits = edits[:changes]
	return c
}

// read looks up the weights and adds them up. It is false where a log probability is no float16 value.
func (x *choices) read(index *eight, table *halfWeights, exclude bool) bool {
	x.index = index
	w := &x.weights
	// One after the other: an array as a whole would be made elsewhere and copied.
	w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7] = table[index[0]], table[index[1]], table[index[2]], table[index[3]],
		table[index[4]], table[index[5]], table[index[6]], table[index[7]]
	first := w[0]
	if exclude {
		first = 0
	}
	x.addUp(first)
	return w[0] == w[0] && x.running[7] == x.running[7]
}

// addUp makes running sums of the weights, with another first one.
func (x *choices) addUp(first float64) {
	w, r := &x.weights, &x.running
	s1 := first + w[1]
	s2 := s1 + w[2]
	s3 := s2 + w[3]
	s4 := s3 + w[4]
	s5 := s4 + w[5]
	s6 := s5 + w[6]
	r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7] = first, s1, s2, s3, s4, s5, s6, s6+w[7]
}

// atLeast is 1 where a >= b, else 0; the compiler makes no branch of it.
func atLeast(a, b float64) int {
	if a >= b {
		return 1
	}
	return 0
}
