package editor

import (
	"math"
	"slices"
)

// A candidate is of the common kind where the old token is the most probable one
// and not repeated, no other of the k choices is barred, and all have a log
// probability that has an index in the table of weights. Then these indexes are
// all that a draw needs to know.

// eight are the indexes of a candidate's choices in a table of weights, most probable first, nothingIndex behind the k-th.
type eight [8]uint16

// hasEights says whether the policy's choices are at most eight, of scores that store as many.
func (e *Editor) hasEights(s *Scores) bool {
	return e.policy.K <= 8 && s.K >= 8 && !e.policy.WholeWords
}

// listEights reads the choices of all candidates into plan.eights, and says in plan.common which are of the common kind.
func (e *Editor) listEights(d *Document, plan *Plan) {
	n := len(plan.candidates)
	plan.eights = slices.Grow(plan.eights[:0], n)[:n]
	plan.common = slices.Grow(plan.common[:0], n)[:n]
	s := &d.Scores
	if e.nucleus != nil {
		plan.own = e.nucleus.exponentialsOf(s, plan.candidates, plan.own)
	}
	if e.readEights(d, plan) == n {
		return
	}
	for c, j := range plan.candidates {
		if !plan.common[c] {
			at := int(j) * s.K
			plan.common[c] = e.readEight(&plan.eights[c], s.TopIDs[at:], s.TopLogP[at:], d.IDs[s.TopPos[j]])
		}
	}
}

// readEight reads the choices of a candidate, and says whether it is of the common kind.
func (e *Editor) readEight(index *eight, ids []int32, logp []float32, old uint32) bool {
	if uint32(ids[0]) != old {
		return false
	}
	for i := range index {
		switch {
		case i >= e.policy.K:
			index[i] = nothingIndex
			continue
		case i > 0 && !eligible(e.plain, e.barred, ids[i], old):
			return false
		}
		at := halfIndex(math.Float32bits(logp[i]))
		if logp[i] == 0 {
			at = oneIndex
		} else if at >= halfCount {
			return false
		}
		index[i] = uint16(at)
	}
	return true
}

// eligible says whether id can be drawn and is not old.
func eligible(plain idRange, barred []bool, id int32, old uint32) bool {
	return uint32(id) != old && (plain.has(uint32(id)) || uint(uint32(id)) < uint(len(barred)) && !barred[uint32(id)])
}
