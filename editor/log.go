package editor

import (
	"encoding/binary"
	"fmt"
	"math"
)

// LoggedEdit is an edit as a log has it. Logs come from files, so nothing of it is believed: ids and positions may be any
// numbers.
type LoggedEdit struct {
	Pos      int64 // index into the document's ids, before the edits of its generation
	Old, New int64 // ids; New is NoID where the token is dropped, and Old where its loss is masked
	Action   Action
	Context  bool // the token's label was -100 before
}

// P is the probability that a log probability is of, with the same bits everywhere.
func P(logp float32) float64 { return expNeg(float64(logp)) }

// NoID stands for the new id of a token that is dropped.
const NoID = -1

// ignoredLabel is the label of tokens that no loss is taken of.
const ignoredLabel = -100

// LoggedGeneration is what one generation did to one document.
type LoggedGeneration struct {
	Edits      []LoggedEdit // ascending positions
	IDsHash    uint64       // low half of the document hash before the edits
	EditedHash uint64       // and after them
	EditsHash  uint64       // low half of the hash of the edits: loss that is masked leaves no trace in the ids
}

// LogError says that a log is damaged, or is not of the document that it is to be applied to.
type LogError struct {
	Field   string // as in the log's columns
	Message string
}

func (e *LogError) Error() string { return e.Field + " " + e.Message }

func logErrorf(field, format string, args ...any) error {
	return &LogError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// Replay is a document on its way through the generations of a log. The slices that it begins with are only read; those
// that it ends with are its own.
type Replay struct {
	IDs    []uint32
	Labels []int64 // nil, or one for each id
	Source []int32 // for each id its index in the ids that the replay began with; -1 where a revert has put it in
}

// NewReplay begins a replay.
func NewReplay(ids []uint32, labels []int64) *Replay {
	r := &Replay{IDs: ids, Labels: labels, Source: make([]int32, len(ids))}
	for i := range r.Source {
		r.Source[i] = int32(i)
	}
	return r
}

// Seal fills in the hashes of a generation from the ids before its edits.
func (g *LoggedGeneration) Seal(ids []uint32) error {
	r := Replay{IDs: ids, Source: make([]int32, len(ids))}
	edited, err := g.edited(&r, LabelsOriginal)
	if err != nil {
		return err
	}
	g.IDsHash, g.EditedHash, g.EditsHash = hashIDs(ids).Lo, hashIDs(edited.IDs).Lo, g.hashEdits()
	return nil
}

// hashEdits hashes what decides ids and labels: for each edit its index, old and new id, as little-endian int64, and a byte
// that is 1 where the label was -100.
func (g *LoggedGeneration) hashEdits() uint64 {
	b := make([]byte, 0, 25*len(g.Edits))
	for i := range g.Edits {
		e := &g.Edits[i]
		for _, v := range []int64{e.Pos, e.Old, e.New} {
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		}
		context := byte(0)
		if e.Context {
			context = 1
		}
		b = append(b, context)
	}
	return HashBytes(b).Lo
}

// whole says whether the edits are those that were logged.
func (g *LoggedGeneration) whole() error {
	if h := g.hashEdits(); h != g.EditsHash {
		return logErrorf("edits_hash", "is %016x, but the edits have %016x: rows of the log are missing or were changed; use it as it was written", g.EditsHash, h)
	}
	return nil
}

// Apply makes the edits of a generation. Labels follow as the policy's Labels says. After an error the replay is as it was.
//
// It refuses edits that contradict each other or the ids, and ids whose hashes before and after are not the log's.
func (r *Replay) Apply(g *LoggedGeneration, labels string) error {
	if h := hashIDs(r.IDs).Lo; h != g.IDsHash {
		if h == g.EditedHash {
			return logErrorf("ids_hash", "is %016x, but these ids have %016x: they are edited already; revert the log, or apply it to the original", g.IDsHash, h)
		}
		return logErrorf("ids_hash", "is %016x, but these ids have %016x%s; apply the log to the ids that were edited, as they were before",
			g.IDsHash, h, g.difference(r.IDs))
	}
	next, err := g.edited(r, labels)
	if err != nil {
		return err
	}
	if h := hashIDs(next.IDs).Lo; h != g.EditedHash {
		return logErrorf("edited_hash", "is %016x, but the edits give %016x: rows of the log are missing or were changed; use it as it was written", g.EditedHash, h)
	}
	if err := g.whole(); err != nil {
		return err
	}
	*r = next
	return nil
}

// Revert takes the edits of a generation back. Where a label is the new id it becomes the old one; a token whose loss was
// masked, or that was dropped, gets its id back as its label, or -100 where that was its label. After an error the replay is
// as it was. It refuses what [Replay.Apply] refuses.
func (r *Replay) Revert(g *LoggedGeneration) error {
	if h := hashIDs(r.IDs).Lo; h != g.EditedHash {
		if h == g.IDsHash {
			return logErrorf("edited_hash", "is %016x, but these ids have %016x: they are not edited, or are reverted already", g.EditedHash, h)
		}
		return logErrorf("edited_hash", "is %016x, but these ids have %016x; revert the log on the ids that editing gave, before anything else is done to them", g.EditedHash, h)
	}
	previous, err := g.reverted(r)
	if err != nil {
		return err
	}
	if h := hashIDs(previous.IDs).Lo; h != g.IDsHash {
		return logErrorf("ids_hash", "is %016x, but without the edits the ids have %016x: rows of the log are missing or were changed; use it as it was written", g.IDsHash, h)
	}
	if err := g.whole(); err != nil {
		return err
	}
	*r = previous
	return nil
}

// difference names the first edit that is not of these ids, if there is any.
func (g *LoggedGeneration) difference(ids []uint32) string {
	for i := range g.Edits {
		e := &g.Edits[i]
		switch {
		case e.Pos < 0 || e.Pos >= int64(len(ids)):
			return fmt.Sprintf(" (the log has an edit at index %d, but there are %d ids)", e.Pos, len(ids))
		case int64(ids[e.Pos]) != e.Old:
			return fmt.Sprintf(" (at index %d stands %d, in the log %d)", e.Pos, ids[e.Pos], e.Old)
		}
	}
	return ""
}

// check looks at an edit alone and at the one before it.
func (g *LoggedGeneration) check(i int) error {
	e := &g.Edits[i]
	if e.Pos < 0 || i > 0 && e.Pos <= g.Edits[i-1].Pos {
		return logErrorf("position", "is index %d in edit %d of the row; indexes are 0 and above, and each is edited once", e.Pos, i)
	}
	isID := func(id int64) bool { return id >= 0 && id <= math.MaxUint32 }
	if !isID(e.Old) {
		return logErrorf("old", "is %d at index %d, which is no id", e.Old, e.Pos)
	}
	var agrees bool
	switch e.Action {
	case Drop:
		agrees = e.New == NoID
	case MaskLoss:
		agrees = e.New == e.Old
	default:
		agrees = isID(e.New) && e.New != e.Old
	}
	if !agrees {
		return logErrorf("new", "is %d at index %d, where old is %d and action is %s: a dropped token has no new id, one of masked loss has the old id, and every other has another", e.New, e.Pos, e.Old, e.Action)
	}
	return nil
}

// edited is the document with the edits.
func (g *LoggedGeneration) edited(r *Replay, labels string) (Replay, error) {
	next := r.room(len(r.IDs))
	from := 0
	for i := range g.Edits {
		if err := g.check(i); err != nil {
			return next, err
		}
		e := &g.Edits[i]
		if e.Pos >= int64(len(r.IDs)) {
			return next, logErrorf("position", "is index %d, but there are %d ids", e.Pos, len(r.IDs))
		}
		at := int(e.Pos)
		if int64(r.IDs[at]) != e.Old {
			return next, logErrorf("old", "is %d at index %d, but there stands %d", e.Old, at, r.IDs[at])
		}
		next.keep(r, from, at)
		from = at + 1
		var label int64
		if r.Labels != nil {
			label = r.Labels[at]
			if labels == LabelsEdited && label != ignoredLabel && label != e.Old {
				return next, logErrorf("old", "is %d at index %d, but the label there is %d; labels must be the ids themselves or -100, or the log be applied with labels=%q",
					e.Old, at, label, LabelsOriginal)
			}
		}
		switch {
		case e.Action == Drop:
			continue
		case e.Action == MaskLoss:
			label = ignoredLabel
		case labels == LabelsEdited && label != ignoredLabel:
			label = e.New
		}
		next.put(uint32(e.New), label, r.Source[at])
	}
	next.keep(r, from, len(r.IDs))
	return next, nil
}

// reverted is the document without the edits.
func (g *LoggedGeneration) reverted(r *Replay) (Replay, error) {
	previous := r.room(len(r.IDs) + len(g.Edits))
	from := 0
	for i := range g.Edits {
		if err := g.check(i); err != nil {
			return previous, err
		}
		e := &g.Edits[i]
		// Of what is before the edit, this much is still to be copied.
		between := e.Pos - int64(len(previous.IDs))
		if between > int64(len(r.IDs)-from) || between == int64(len(r.IDs)-from) && e.Action != Drop {
			return previous, logErrorf("position", "is index %d, but without the edits there are only %d ids", e.Pos, len(previous.IDs)+len(r.IDs)-from)
		}
		at := from + int(between)
		previous.keep(r, from, at)
		from = at
		label := e.Old
		if e.Context {
			label = ignoredLabel
		}
		if e.Action == Drop {
			previous.put(uint32(e.Old), label, -1)
			continue
		}
		if int64(r.IDs[at]) != e.New {
			return previous, logErrorf("new", "is %d at index %d, but there stands %d", e.New, e.Pos, r.IDs[at])
		}
		if r.Labels != nil && r.Labels[at] != e.New && !(e.Action == MaskLoss && r.Labels[at] == ignoredLabel) {
			label = r.Labels[at]
		}
		previous.put(uint32(e.Old), label, r.Source[at])
		from++
	}
	previous.keep(r, from, len(r.IDs))
	return previous, nil
}

// room is an empty replay for n ids.
func (r *Replay) room(n int) Replay {
	next := Replay{IDs: make([]uint32, 0, n), Source: make([]int32, 0, n)}
	if r.Labels != nil {
		next.Labels = make([]int64, 0, n)
	}
	return next
}

// keep copies what is in [from, to) of another replay.
func (r *Replay) keep(of *Replay, from, to int) {
	r.IDs = append(r.IDs, of.IDs[from:to]...)
	r.Source = append(r.Source, of.Source[from:to]...)
	if r.Labels != nil {
		r.Labels = append(r.Labels, of.Labels[from:to]...)
	}
}

func (r *Replay) put(id uint32, label int64, source int32) {
	r.IDs = append(r.IDs, id)
	r.Source = append(r.Source, source)
	if r.Labels != nil {
		r.Labels = append(r.Labels, label)
	}
}
