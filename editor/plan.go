package editor

import (
	"math/bits"
	"slices"
)

// Document is one row: its ids without padding, what identifies it, and its
// scores. All fields are views, read during [Editor.Plan] only.
type Document struct {
	IDs       []uint32
	Hash      Hash128 // of IDs as little-endian uint32
	Key       Hash128 // of the document's key, or Hash
	Offset    uint64  // position of IDs[0] in the document that Key names
	Protected []bool  // nil, or true for every id to be left alone
	Scores    Scores
}

// Epoch selects the random numbers.
type Epoch struct {
	Seed       uint64
	Epoch      uint32
	Generation uint16
}

// Plan is the edits of one document, and room to find them in. It is meant to
// be used again and again: once it has grown to the longest document, planning
// allocates nothing. One Plan serves one goroutine at a time.
type Plan struct {
	Edits []Edit // ascending positions

	candidates []int32   // indexes into TopPos of what is drawn
	words      []uint64  // one random word for each of them
	eights     []eight   // the choices of each, for what has few
	common     []bool    // and whether they are as usual
	own        []float64 // and exponentials of the old ids, where there is a nucleus
	sums       []float64 // running sums of the weights of one position
	stream     drawStream

	// What the general way needs besides.
	found     []found
	protected []bool
	stretch   stretch
	merged    []Edit
	amount    amountScratch
}

// Plan decides which tokens of a document are replaced and by what, into
// plan.Edits. After an error there are no edits.
//
// It refuses lengths that do not fit together, scores of other ids, log
// probabilities that are NaN or positive, stored positions that do not ascend
// or lie outside, and a candidate without a stored top-k; and, where they are
// drawn from, ids outside the model's vocabulary and stored log probabilities
// that are no float16 values.
func (e *Editor) Plan(ep Epoch, d *Document, plan *Plan) (Counts, error) {
	plan.Edits = plan.Edits[:0]
	counts, err := e.plan(ep, d, plan)
	if err != nil {
		plan.Edits = plan.Edits[:0]
		return Counts{}, err
	}
	return counts, nil
}

func (e *Editor) plan(ep Epoch, d *Document, plan *Plan) (Counts, error) {
	if err := d.Scores.check(d, e.leastK()); err != nil {
		return Counts{}, err
	}
	protected := d.Protected
	if e.protects {
		protected = e.protect(d, plan)
	}
	simple := e.simple()
	if simple {
		if counts, ok := e.findCandidates(d, protected, plan); ok {
			return counts, e.draw(ep, d, plan, &counts)
		}
	}
	counts, err := e.findAll(d, protected, plan)
	if err != nil {
		return Counts{}, err
	}
	if !simple {
		e.limitAmount(ep, d, plan, &counts)
	}
	e.listDrawn(plan)
	if err := e.draw(ep, d, plan, &counts); err != nil {
		return Counts{}, err
	}
	if !simple {
		e.merge(d, plan, &counts)
	}
	return counts, nil
}

// simple says whether all candidates are drawn and are all that is above one limit: the policy of the paper and most
// others. [Editor.findCandidates] is for them.
func (e *Editor) simple() bool {
	return len(e.bands) == 1 && e.bands[0].start == 0 && e.bands[0].action == Resample &&
		e.policy.EditProbability == 1 && e.policy.MaxEditRate == 1
}

// leastK is how many choices must be stored for a position.
func (e *Editor) leastK() int {
	if e.policy.Resamples() {
		return e.policy.K
	}
	return 0
}

// protect adds to the document's protected marks what the policy protects by position and text.
func (e *Editor) protect(d *Document, plan *Plan) []bool {
	n := len(d.IDs)
	plan.protected = slices.Grow(plan.protected[:0], n)[:n]
	clear(plan.protected)
	copy(plan.protected, d.Protected)
	e.protectText(d, &plan.stretch, plan.protected)
	return plan.protected
}

// found is a candidate.
type found struct {
	pos    int32
	stored int32 // index into TopPos, where it is to be drawn
	band   uint8
}

// listDrawn lists in plan.candidates what of plan.found is to be drawn.
func (e *Editor) listDrawn(plan *Plan) {
	plan.candidates = plan.candidates[:0]
	for _, f := range plan.found {
		if e.policy.Bands[f.band].Action == Resample {
			plan.candidates = append(plan.candidates, f.stored)
		}
	}
}

// merge puts what is dropped or masked between the changes, in order of position, and names the bands.
func (e *Editor) merge(d *Document, plan *Plan, counts *Counts) {
	plan.merged = slices.Grow(plan.merged[:0], len(plan.found))
	changes := plan.Edits
	for _, f := range plan.found {
		switch action := e.policy.Bands[f.band].Action; action {
		case Resample:
			if len(changes) > 0 && changes[0].Pos == f.pos {
				changes[0].Band = f.band
				plan.merged = append(plan.merged, changes[0])
				changes = changes[1:]
			}
		default:
			id := d.IDs[f.pos]
			plan.merged = append(plan.merged, Edit{Pos: f.pos, Old: id, New: id, LogP: d.Scores.LogP[f.pos], Band: f.band, Action: action})
			if action == Drop {
				counts.Dropped++
			} else {
				counts.Masked++
			}
		}
	}
	plan.Edits, plan.merged = plan.merged, plan.Edits
}

// findCandidates puts the candidates' indexes in TopPos into plan.candidates,
// for simple policies. It is false where anything is out of the ordinary.
//
// It counts what is in the band, lists what is stored and in the band, and
// compares the two numbers. Neither loop has a branch that depends on data.
func (e *Editor) findCandidates(d *Document, protected []bool, plan *Plan) (Counts, bool) {
	s := &d.Scores
	limit := e.bands[0].end
	n := len(d.IDs)
	inBand := countBelow(limit, s.LogP)

	nulls := 0
	if s.Valid != nil {
		firstStored := n
		if len(s.TopPos) > 0 {
			firstStored = int(s.TopPos[0])
		}
		for i := 0; i < n; i += 64 {
			for w := ^validWord(s.Valid, s.ValidOffset, n, i); w != 0; w &= w - 1 {
				// A null counts for nothing, whatever its slot holds.
				null := i + bits.TrailingZeros64(w)
				nulls++
				if below(limit, s.LogP[null]) != 0 {
					inBand--
					if null < firstStored {
						continue
					}
					if _, stored := slices.BinarySearch(s.TopPos, int32(null)); stored {
						return Counts{}, false // listBelow would list it
					}
				}
			}
		}
	}

	plan.candidates = slices.Grow(plan.candidates[:0], len(s.TopPos))[:len(s.TopPos)]
	found, ok := listBelow(plan.candidates, s.TopPos, s.LogP, limit)
	if !ok || found != inBand {
		return Counts{}, false
	}
	candidates := 0
	for _, j := range plan.candidates[:found] {
		p := s.TopPos[j]
		id := d.IDs[p]
		if !(s.LogP[p] <= 0) {
			return Counts{}, false
		}
		if !e.plain.has(id) {
			if int(id) >= len(e.barred) {
				return Counts{}, false
			}
			if e.barred[id] {
				continue
			}
		}
		if protected != nil && protected[p] {
			continue
		}
		plan.candidates[candidates] = j
		candidates++
	}
	plan.candidates = plan.candidates[:candidates]
	return Counts{
		Tokens:     int64(n),
		Scored:     int64(n - nulls),
		Unscored:   int64(nulls),
		Protected:  int64(found - candidates),
		Candidates: int64(candidates),
	}, true
}

// listBelow lists the indexes in pos of the positions whose log probability is
// below the limit, and returns how many there are. It is false where positions
// do not ascend or lie outside. list is as long as pos.
func listBelow(list, pos []int32, logp []float32, limit uint64) (int, bool) {
	found := 0
	last := int32(-1)
	for j, p := range pos {
		if p <= last || uint(p) >= uint(len(logp)) {
			return 0, false
		}
		last = p
		list[found] = int32(j)
		found += int(below(limit, logp[p]))
	}
	return found, true
}

// findAll puts the candidates into plan.found, for every policy and every case,
// and says what is wrong.
//
// It lists what is outside the widest gap between the bands, without a branch
// that depends on data, and then looks at that one after the other. What is no
// log probability is outside of every gap.
func (e *Editor) findAll(d *Document, protected []bool, plan *Plan) (Counts, error) {
	s := &d.Scores
	n := len(d.IDs)
	last := -1
	for j, p := range s.TopPos {
		if p < 0 || int(p) >= n {
			return Counts{}, scoresErrorf("topk_pos", "is %d at index %d; positions of a row of %d ids are 0..%d; score again", p, j, n, n-1)
		}
		if int(p) <= last {
			return Counts{}, scoresErrorf("topk_pos", "is %d at index %d, after %d; positions must ascend; score again", p, j, last)
		}
		last = int(p)
	}
	nulls := 0
	if s.Valid != nil {
		for i := 0; i < n; i += 64 {
			nulls += 64 - bits.OnesCount64(validWord(s.Valid, s.ValidOffset, n, i))
		}
	}
	counts := Counts{Tokens: int64(n), Scored: int64(n - nulls), Unscored: int64(nulls)}

	plan.candidates = slices.Grow(plan.candidates[:0], n)[:n]
	listed := 0
	gap := e.gap
	for i, v := range s.LogP {
		plan.candidates[listed] = int32(i)
		listed += int(gap.lacks(keyOf(v)))
	}
	plan.found = plan.found[:0]
	j := 0
	for _, pos := range plan.candidates[:listed] {
		i := int(pos)
		v := s.LogP[i]
		if !s.valid(i) {
			continue
		}
		if !(v <= 0) {
			return Counts{}, scoresErrorf("logp", "is %v at position %d; a log probability is 0 or below, null where there is none; score again", v, i)
		}
		band := e.bandOf(v)
		if band == nil {
			continue
		}
		id := d.IDs[i]
		if int64(id) >= int64(len(e.barred)) {
			return Counts{}, scoresErrorf("input_ids", "is %d at position %d; the prior's vocabulary ends at %d: use a prior with your tokenizer", id, i, len(e.barred)-1)
		}
		if e.barred[id] || protected != nil && protected[i] {
			counts.Protected++
			continue
		}
		stored := int32(-1)
		if band.action == Resample {
			for j < len(s.TopPos) && s.TopPos[j] < pos {
				j++
			}
			if j == len(s.TopPos) || s.TopPos[j] != pos {
				return Counts{}, scoresErrorf("topk_pos", "lacks position %d, whose logp of %v is in the policy's band %v: score with keep=policy, or choose a narrower band",
					i, v, e.policy.Bands[band.index])
			}
			stored = int32(j)
		}
		counts.Candidates++
		plan.found = append(plan.found, found{pos, stored, band.index})
	}
	return counts, nil
}
