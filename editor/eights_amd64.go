package editor

import "golang.org/x/sys/cpu"

// readEights reads the choices of the candidates with AVX2, and returns how many are of the common kind. It takes none with an id
// outside e.plain for one of them.
func (e *Editor) readEights(d *Document, plan *Plan) int {
	if !cpu.X86.HasAVX2 || e.plain.length == 0 {
		clear(plan.common)
		return 0
	}
	s := &d.Scores
	return readEightsAVX2(&eightsInput{
		candidates: &plan.candidates[0],
		n:          len(plan.candidates),
		topPos:     &s.TopPos[0],
		ids:        &d.IDs[0],
		topIDs:     &s.TopIDs[0],
		topLogP:    &s.TopLogP[0],
		stride:     4 * s.K,
		index:      &plan.eights[0],
		common:     &plan.common[0],
		beyond:     &beyond[e.policy.K-1],
		plain:      e.plain,
	})
}

// beyond[k-1] marks the lanes from the k-th on.
var beyond = func() (marks [8][8]int32) {
	for k := range marks {
		for lane := k + 1; lane < len(marks[k]); lane++ {
			marks[k][lane] = -1
		}
	}
	return marks
}()

// eightsInput is what readEightsAVX2 reads and where it writes: for each of the n candidates an index into topPos, which is in
// range, as are the positions there.
type eightsInput struct {
	candidates *int32
	n          int // at least 1
	topPos     *int32
	ids        *uint32
	topIDs     *int32
	topLogP    *float32
	stride     int // in bytes, between positions of topIDs and topLogP
	index      *eight
	common     *bool
	beyond     *[8]int32
	plain      idRange
}

//go:noescape
func readEightsAVX2(a *eightsInput) int
