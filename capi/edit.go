package capi

// #include "export.h"
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sort"
	"sync"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"

	"toedit/editor"
	"toedit/editor/prior"
)

// openEditor is what an editor's handle stands for.
type openEditor struct {
	*editor.Editor
	fingerprint string
	vocabulary  int
	policy      editor.Policy
	drops       bool                 // whether rows can become shorter
	scale       func() *editor.Scale // made when statistics are first asked for
	scratch     sync.Pool            // *scratch
}

// scratch is memory that one call of Edit uses for a part of its rows, and what it found in them.
type scratch struct {
	doc       document
	edited    editor.Document
	plan      editor.Plan
	protected []bool

	log             logBuilder
	removed         []place
	counts          editor.Counts // but for Expected
	expected        []float64     // of each row
	empty, overlong int
}

func (s *scratch) reset() {
	s.log.reset()
	s.removed = s.removed[:0]
	s.counts = editor.Counts{}
	s.expected = s.expected[:0]
	s.empty, s.overlong = 0, 0
}

// add takes over what was found in the part behind, but for its log.
func (s *scratch) add(o *scratch) {
	s.removed = append(s.removed, o.removed...)
	s.counts.Add(o.counts)
	s.expected = append(s.expected, o.expected...)
	s.empty += o.empty
	s.overlong += o.overlong
}

// giveBack keeps the scratch for the next call. No views of the batch's memory, which is about to be released, stay behind.
func (e *openEditor) giveBack(s *scratch) {
	s.doc.ids, s.edited = nil, editor.Document{}
	e.scratch.Put(s)
}

// CheckPolicy says what is wrong with a policy (JSON).
func CheckPolicy(policy string) error {
	return guarded(func() error {
		_, err := parsePolicy(policy)
		return err
	})
}

func parsePolicy(policy string) (editor.Policy, error) {
	p, err := editor.ParsePolicy([]byte(policy))
	if err != nil {
		return p, &Error{Input, err}
	}
	return p, nil
}

// PresetPolicy returns the policy of that name, as JSON.
func PresetPolicy(name string) (policy string, err error) {
	err = guarded(func() error {
		p, err := editor.Preset(name)
		if err != nil {
			return &Error{Input, err}
		}
		text, err := json.Marshal(p)
		policy = string(text)
		return err
	})
	return policy, err
}

// OpenEditor compiles a policy (JSON) for a prior.
func OpenEditor(priorHandle uint64, policy string) (handle uint64, err error) {
	err = guarded(func() error {
		p, err := lookup[*prior.Prior](priorHandle)
		if err != nil {
			return err
		}
		parsed, err := parsePolicy(policy)
		if err != nil {
			return err
		}
		vocabulary := p.Vocabulary()
		if parsed.NeedsText() {
			if vocabulary.Text, err = p.Text(); err != nil {
				return &Error{Prior, err}
			}
		}
		e, err := editor.New(parsed, vocabulary)
		if err != nil {
			return &Error{Input, err}
		}
		handle = handles.add(&openEditor{Editor: e, fingerprint: p.Fingerprint(), vocabulary: p.VocabSize,
			policy: parsed, drops: parsed.Drops(),
			scale:   sync.OnceValue(func() *editor.Scale { return editor.NewScale(parsed.Bands) }),
			scratch: sync.Pool{New: func() any { return new(scratch) }}})
		return nil
	})
	return handle, err
}

// EditArgs are the Arrow structures of one call of Edit. Counts is the address of a struct toedit_counts.
type EditArgs struct {
	Batch, Schema, Out, OutSchema, Log, LogSchema, Counts Address
}

// Edit edits a batch that carries its scores. See toedit_edit in toedit.h for its columns.
func Edit(handle, seed uint64, epoch uint32, generation uint16, a EditArgs) error {
	defer releaseBoth(a.Batch, a.Schema)
	missing := errors.Join(zeroOut(a.Out, a.OutSchema), zeroOut(a.Log, a.LogSchema))
	counts := (*C.struct_toedit_counts)(C.toedit_pointer(C.uint64_t(a.Counts)))
	if counts != nil {
		*counts = C.struct_toedit_counts{}
	}
	return guarded(func() error {
		if missing != nil {
			return missing
		}
		if counts == nil {
			return fail(Input, "the pointer for the counts is null")
		}
		e, in, err := importEdit(handle, a.Batch, a.Schema)
		if err != nil {
			return err
		}
		if e.drops {
			if err := in.canDrop(); err != nil {
				return err
			}
		}
		ep := editor.Epoch{Seed: seed, Epoch: epoch, Generation: generation}
		r, err := in.edit(e, ep)
		if err != nil {
			return err
		}
		if err := export(r.out, a.Out, a.OutSchema); err != nil {
			r.log.free()
			return err
		}
		if err := export(r.log, a.Log, a.LogSchema); err != nil {
			releaseBoth(a.Out, a.OutSchema)
			return err
		}
		*counts = C.struct_toedit_counts{
			rows:             C.int64_t(in.rows),
			empty_rows:       C.int64_t(r.empty),
			overlong_rows:    C.int64_t(r.overlong),
			tokens:           C.int64_t(r.counts.Tokens),
			unscored:         C.int64_t(r.counts.Unscored),
			protected_tokens: C.int64_t(r.counts.Protected),
			candidates:       C.int64_t(r.counts.Candidates),
			unselected:       C.int64_t(r.counts.Unselected),
			truncated:        C.int64_t(r.counts.Truncated),
			changes:          C.int64_t(r.counts.Changes),
			dropped:          C.int64_t(r.counts.Dropped),
			masked:           C.int64_t(r.counts.Masked),
			expected_changes: C.double(r.counts.Expected),
		}
		return nil
	})
}

// importEdit looks up an editor, and imports a batch for it.
func importEdit(handle uint64, batch, schema Address) (*openEditor, *editInput, error) {
	b, err := importBatch(batch, schema)
	if err != nil {
		return nil, nil, err
	}
	e, err := lookup[*openEditor](handle)
	if err != nil {
		return nil, nil, err
	}
	in, err := newEditInput(b, &e.policy)
	return e, in, err
}

// editInput is a batch whose columns were looked up and checked as far as whole columns can be.
type editInput struct {
	rows    int
	ids     *listColumn
	mask    *flagColumn
	protect []*flagColumn
	roles   *roleColumn
	ranges  *characterRanges
	labels  labelColumn
	scores  *scoresColumn
	key     func(int) editor.Hash128 // nil: the document's own hash
	offset  []int64                  // nil: 0
	types   map[string]arrow.DataType
}

// editColumns are the columns that Edit knows.
var editColumns = []string{"input_ids", "scores", "attention_mask", "labels", "protected_mask", "special_tokens_mask",
	"assistant_masks", "protected_ranges", "offset_mapping", "key", "offset"}

func newEditInput(b *arrowBatch, p *editor.Policy) (*editInput, error) {
	if err := b.only(editColumns...); err != nil {
		return nil, err
	}
	in := &editInput{rows: b.rows, types: b.types}
	var err error
	if in.ids, err = b.tokenColumn(); err != nil {
		return nil, err
	}
	if t, ok := b.types["labels"]; ok {
		if err := checkLabelType(t); err != nil {
			return nil, err
		}
	}
	if _, ok := b.types["scores"]; !ok {
		return nil, fail(Input, "the batch has no column scores; score it with Prior.score first")
	}
	if in.roles, err = newRoleColumn(b, in.ids, p); err != nil {
		return nil, err
	}
	if in.ranges, err = newCharacterRanges(b, in.ids); err != nil {
		return nil, err
	}
	if b.rows == 0 {
		return in, nil
	}
	if in.scores, err = newScoresColumn(b.columns["scores"]); err != nil {
		return nil, err
	}
	if in.mask, err = b.flags("attention_mask", in.ids); err != nil {
		return nil, err
	}
	for _, name := range []string{"protected_mask", "special_tokens_mask"} {
		f, err := b.flags(name, in.ids)
		if err != nil {
			return nil, err
		}
		if f != nil {
			in.protect = append(in.protect, f)
		}
	}
	if in.labels, err = newLabelColumn(b, in.ids); err != nil {
		return nil, err
	}
	return in, in.keys(b)
}

// canDrop refuses columns whose rows have one length.
func (in *editInput) canDrop() error {
	for _, name := range []string{"input_ids", "labels"} {
		if t, ok := in.types[name]; ok && t.ID() == arrow.FIXED_SIZE_LIST {
			return fail(Input, "column %s is %s, whose rows cannot become shorter, but the policy drops tokens; edit rows of their own length, before they are collated", name, t)
		}
	}
	return nil
}

// maxOffset leaves room for a row's positions behind it, which the log gives as int64.
const maxOffset = math.MaxInt64 - math.MaxInt32

// keys looks up the key and offset columns.
func (in *editInput) keys(b *arrowBatch) error {
	noNulls := func(name string, c arrow.Array) error {
		if i := firstNull(c, 0, c.Len()); i >= 0 {
			return fail(Input, "row %d: the %s column is null; every row needs a value", i, name)
		}
		return nil
	}
	if c, ok := b.columns["key"]; ok {
		if err := noNulls("key", c); err != nil {
			return err
		}
		text, isText := stringValues(c)
		numbers, isNumber := c.(*array.Int64)
		switch {
		case isText:
			in.key = func(i int) editor.Hash128 { return editor.HashBytes([]byte(text(i))) }
		case isNumber:
			in.key = func(i int) editor.Hash128 { return editor.HashInt64(numbers.Value(i)) }
		default:
			return fail(Input, "the key column is %s, but must be string, large_string or int64", c.DataType())
		}
	}
	if c, ok := b.columns["offset"]; ok {
		if err := noNulls("offset", c); err != nil {
			return err
		}
		numbers, ok := c.(*array.Int64)
		if !ok {
			return fail(Input, "the offset column is %s, but must be int64", c.DataType())
		}
		in.offset = numbers.Int64Values()
		for i, o := range in.offset {
			if o < 0 || o > maxOffset {
				return fail(Input, "row %d: its offset is %d, but must be 0 to %d", i, o, int64(maxOffset))
			}
		}
	}
	return nil
}

// editResult is what Edit exports.
type editResult struct {
	out, log        *column
	counts          editor.Counts
	empty, overlong int
}

func (in *editInput) edit(e *openEditor, ep editor.Epoch) (*editResult, error) {
	if in.rows == 0 {
		return in.editNothing(e.drops), nil
	}
	return withTokens(in.ids.values, tokenVisitor[*editResult]{
		int64:  func(v []int64) (*editResult, error) { return editTokens(in, e, ep, v) },
		int32:  func(v []int32) (*editResult, error) { return editTokens(in, e, ep, v) },
		uint16: func(v []uint16) (*editResult, error) { return editTokens(in, e, ep, v) },
		uint32: func(v []uint32) (*editResult, error) { return editTokens(in, e, ep, v) },
	})
}

// editNothing is the result for a batch without rows, in the types that came in.
func (in *editInput) editNothing(drops bool) *editResult {
	r := &editResult{out: structOf(0), log: logColumns(1, new(logBuilder))}
	for _, name := range []string{"input_ids", "labels"} {
		if t, ok := in.types[name].(arrow.ListLikeType); ok {
			var offsets buffer
			if t.ID() != arrow.FIXED_SIZE_LIST {
				var zero []int64
				offsets, zero = newBuffer[int64](1) // one offset, of either width
				zero[0] = 0
			}
			r.out.children = append(r.out.children, listColumnOf(name, t, 0, offsets, copiedColumn[int64]("", t.Elem(), nil)))
		}
	}
	if drops {
		r.out.children = append(r.out.children, keptColumn(nil, 0, nil))
	}
	return r
}

// editTokens edits every row into new columns: the ids and, where there are labels, the labels.
func editTokens[T tokenID](in *editInput, e *openEditor, ep editor.Epoch, values []T) (r *editResult, err error) {
	w := &editing[T]{in: in, e: e, ep: ep, values: values, ids: newCopiedList(in.ids, in.rows, values)}
	last := uint32(e.vocabulary - 1)
	w.idsOnly = in.labels == nil && !e.drops && uint32(T(last)) == last
	copies := []columnCopy{w.ids}
	names := []string{"input_ids"}
	if in.labels != nil {
		w.labels = in.labels.copy(in.rows)
		copies, names = append(copies, w.labels), append(names, "labels")
	}
	threads, parts := in.share(runtime.GOMAXPROCS(0))
	found := make([]*scratch, len(parts)-1)
	for p := range found {
		found[p] = e.scratch.Get().(*scratch)
		found[p].reset()
	}
	defer func() {
		for _, s := range found {
			e.giveBack(s)
		}
		if err != nil {
			for _, c := range copies {
				c.free()
			}
		}
	}()
	if err := inParallel(threads, len(found), func(p int) error { return w.edit(parts[p], parts[p+1], found[p]) }); err != nil {
		return nil, err
	}
	logs := make([]*logBuilder, len(found))
	for p, s := range found {
		logs[p] = &s.log
	}
	s := found[0]
	for _, behind := range found[1:] {
		s.add(behind)
	}
	r = &editResult{out: structOf(in.rows), log: logColumns(threads, logs...), counts: s.counts, empty: s.empty, overlong: s.overlong}
	for _, expected := range s.expected { // row after row, however many threads there were
		r.counts.Expected += expected
	}
	for i, c := range copies {
		c.remove(s.removed)
		r.out.children = append(r.out.children, c.column(names[i], in.types[names[i]]))
	}
	if e.drops {
		r.out.children = append(r.out.children, keptColumn(in.ids, in.rows, s.removed))
	}
	return r, nil
}

// tokensPerThread is what a thread must have to do before another one is started. A batch of a training loop stays below it:
// there the cores are the trainer's.
const tokensPerThread = 1 << 18

// partsPerThread is into how many parts its share is cut, so that none waits long for a slower one.
const partsPerThread = 4

// share says how many threads, at most so many, are to edit the rows, and in which parts of about as many tokens each: where
// they begin, and the end.
func (in *editInput) share(most int) (threads int, starts []int) {
	first, _ := in.ids.row(0)
	_, end := in.ids.row(in.rows - 1)
	threads = max(1, min(most, (end-first)/tokensPerThread))
	n := 1
	if threads > 1 {
		n = threads * partsPerThread
	}
	starts = make([]int, 1, n+1)
	for p := 1; p < n; p++ {
		until := first + (end-first)/n*p
		starts = append(starts, sort.Search(in.rows, func(i int) bool { start, _ := in.ids.row(i); return start >= until }))
	}
	return threads, append(starts, in.rows)
}

// editing is what all threads of one call of Edit share.
type editing[T tokenID] struct {
	in     *editInput
	e      *openEditor
	ep     editor.Epoch
	values []T
	ids    *copiedList[T]
	labels columnCopy // nil where there are none
	// Whether all that edits can do is to put other ids in their places, which are of a type that holds every id.
	idsOnly bool
}

// edit edits rows from..to-1.
func (w *editing[T]) edit(from, to int, s *scratch) error {
	for i := from; i < to; i++ {
		// Row by row: what is edited next is in the cache.
		w.ids.fill(i)
		if w.labels != nil {
			w.labels.fill(i)
		}
		start, end := w.in.ids.row(i)
		if err := read(&s.doc, i, w.values[start:end], w.in.mask, w.e.vocabulary); err != nil {
			return err
		}
		offset, err := w.in.plan(i, w.e, w.ep, s)
		if err != nil {
			return err
		}
		s.log.add(i, offset, s.plan.Edits)
		if err := w.apply(i, s); err != nil {
			return err
		}
	}
	return nil
}

// apply makes the planned edits in row i, whose tokens are in s.doc.
func (w *editing[T]) apply(i int, s *scratch) error {
	ids := w.ids.row(i)
	if w.idsOnly && s.doc.real == nil {
		editor.Apply(ids, s.plan.Edits)
		return nil
	}
	for j := range s.plan.Edits {
		edit := &s.plan.Edits[j]
		at := int(s.doc.index(edit.Pos))
		switch edit.Action {
		case editor.Drop:
			s.removed = append(s.removed, place{i, at})
		case editor.MaskLoss:
			if w.labels != nil {
				w.labels.set(i, at, ignored)
			}
		default:
			if uint32(T(edit.New)) != edit.New {
				return fail(Input, "row %d: position %d is to become id %d, which does not fit the column's %s; use int32 or int64 ids",
					i, at, edit.New, w.in.ids.values.DataType())
			}
			ids[at] = T(edit.New)
			if w.labels != nil && w.e.policy.Labels == editor.LabelsEdited && !w.in.labels.ignores(i, at) {
				w.labels.set(i, at, int64(edit.New))
			}
		}
	}
	return nil
}

// plan plans the edits of row i, whose tokens are in s.doc, into s.plan, and counts. It returns the row's offset.
func (in *editInput) plan(i int, e *openEditor, ep editor.Epoch, s *scratch) (offset uint64, err error) {
	if got := in.scores.prior(i); got != e.fingerprint {
		differs := ""
		if what := prior.Difference(got, e.fingerprint); what != "" {
			differs = fmt.Sprintf(" (they differ in %s)", what)
		}
		return 0, fail(Scores, "row %d: its scores are of prior %q, but the editor has prior %s%s; score it with the editor's prior", i, got, e.fingerprint, differs)
	}
	d := &s.edited
	d.IDs = s.doc.ids
	d.Hash = editor.HashBytes(littleEndian(d.IDs))
	d.Key, d.Offset = d.Hash, 0
	if in.key != nil {
		d.Key = in.key(i)
	}
	if in.offset != nil {
		d.Offset = uint64(in.offset[i])
	}
	if d.Protected, err = in.protected(i, &e.policy, ep, s); err != nil {
		return 0, err
	}
	in.scores.row(i, &d.Scores)
	counts, err := e.Plan(ep, d, &s.plan)
	if err != nil {
		var scores *editor.ScoresError
		kind := Input
		if errors.As(err, &scores) {
			kind = Scores
		}
		return 0, &Error{kind, fmt.Errorf("row %d: %w", i, err)}
	}
	s.expected = append(s.expected, counts.Expected)
	counts.Expected = 0
	s.counts.Add(counts)
	n := len(d.IDs)
	switch {
	case n == 0:
		s.empty++
	case n > 1 && d.Scores.NullCount > 0 && !bitutil.BitIsSet(d.Scores.Valid, d.Scores.ValidOffset+n-1):
		s.overlong++
	}
	return d.Offset, nil
}

// protected marks the row's tokens that masks, character ranges or labels protect; nil where there are none.
func (in *editInput) protected(i int, p *editor.Policy, ep editor.Epoch, s *scratch) ([]bool, error) {
	if len(in.protect) == 0 && in.roles == nil && in.ranges == nil && in.labels == nil {
		return nil, nil
	}
	n := len(s.doc.ids)
	if cap(s.protected) < n {
		s.protected = make([]bool, n, 2*n)
	}
	marks := s.protected[:n]
	clear(marks)
	for _, f := range in.protect {
		base, _ := f.row(i)
		for j := range marks {
			marks[j] = marks[j] || f.at(base+int(s.doc.index(int32(j))))
		}
	}
	if in.roles != nil {
		in.roles.protect(i, &s.doc, marks)
	}
	if in.ranges != nil {
		if err := in.ranges.protect(i, &s.doc, marks); err != nil {
			return nil, err
		}
	}
	if in.labels != nil {
		// After the first generation the original labels are no longer the ids.
		if ep.Generation == 0 || p.Labels != editor.LabelsOriginal {
			if err := in.labels.check(i, &s.doc); err != nil {
				return nil, err
			}
		}
		if p.ProtectContext {
			in.labels.protect(i, &s.doc, marks)
		}
	}
	return marks, nil
}
