package capi

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"

	"toedit/editor"
	"toedit/editor/prior"
	"toedit/editor/vocab"
)

// LogArgs are the Arrow structures of a call that reads a batch and a log.
type LogArgs struct {
	Batch, Schema, Log, LogSchema, Out, OutSchema Address
}

// run imports the two and exports what do makes of them.
func (a *LogArgs) run(do func(b, log *arrowBatch) (*column, error)) error {
	missing := zeroOut(a.Out, a.OutSchema)
	defer releaseBoth(a.Batch, a.Schema)
	defer releaseBoth(a.Log, a.LogSchema)
	return guarded(func() error {
		if missing != nil {
			return missing
		}
		b, err := importBatch(a.Batch, a.Schema)
		if err != nil {
			return err
		}
		log, err := importBatch(a.Log, a.LogSchema)
		if err != nil {
			return err
		}
		out, err := do(b, log)
		if err != nil {
			return err
		}
		return export(out, a.Out, a.OutSchema)
	})
}

// loggedRows are the rows of a batch as a log sees them.
type loggedRows struct {
	rows   int
	ids    *listColumn
	read   rowReader
	at     func(i int) int64 // a value of ids
	labels *numberColumn     // nil where there are none
	key    func(row int) string
	offset func(row int) int64
}

func newLoggedRows(b *arrowBatch, vocabulary int) (*loggedRows, error) {
	r := &loggedRows{rows: b.rows, offset: func(int) int64 { return 0 }}
	if t, ok := b.types["labels"]; ok {
		if err := checkLabelType(t); err != nil {
			return nil, err
		}
	}
	var err error
	if r.ids, err = b.tokenColumn(); err != nil || b.rows == 0 {
		return r, err
	}
	mask, err := b.flags("attention_mask", r.ids)
	if err != nil {
		return nil, err
	}
	if r.read, err = r.ids.rowReader(mask, vocabulary); err != nil {
		return nil, err
	}
	if r.at, err = withTokens(r.ids.values, tokenVisitor[func(int) int64]{
		int64:  func(v []int64) (func(int) int64, error) { return valueOf(v), nil },
		int32:  func(v []int32) (func(int) int64, error) { return valueOf(v), nil },
		uint16: func(v []uint16) (func(int) int64, error) { return valueOf(v), nil },
		uint32: func(v []uint32) (func(int) int64, error) { return valueOf(v), nil },
	}); err != nil {
		return nil, err
	}
	if r.labels, err = b.numbers("labels"); err != nil {
		return nil, err
	}
	if r.labels != nil {
		if err := r.labels.sameLength(r.ids); err != nil {
			return nil, err
		}
	}
	var of editInput
	if err := of.keys(b); err != nil {
		return nil, err
	}
	if of.offset != nil {
		r.offset = func(row int) int64 { return of.offset[row] }
	}
	if c, ok := b.columns["key"]; ok {
		if text, isText := stringValues(c); isText {
			r.key = text
		} else {
			numbers := c.(*array.Int64)
			r.key = func(row int) string { return strconv.FormatInt(numbers.Value(row), 10) }
		}
	}
	return r, nil
}

func valueOf[T tokenID](values []T) func(int) int64 {
	return func(i int) int64 { return int64(values[i]) }
}

// rowLabels are the labels of a row's real tokens; nil where there are none.
func (r *loggedRows) rowLabels(row int, d *document) []int64 {
	if r.labels == nil {
		return nil
	}
	start, _ := r.labels.row(row)
	labels := make([]int64, len(d.ids))
	for j := range labels {
		labels[j] = r.labels.at(start + int(d.index(int32(j))))
	}
	return labels
}

// logEntry is a row of a log.
type logEntry struct {
	row, position int64
	generation    int32
	key           string
	edit          editor.LoggedEdit
	hashes        editor.LoggedGeneration // without edits
}

// groups are the runs of entries that have something in common.
func groups[K comparable](entries []logEntry, of func(*logEntry) K) iter.Seq[[]logEntry] {
	return func(yield func([]logEntry) bool) {
		for from := 0; from < len(entries); {
			to := from + 1
			for to < len(entries) && of(&entries[to]) == of(&entries[from]) {
				to++
			}
			if !yield(entries[from:to]) {
				return
			}
			from = to
		}
	}
}

func rowOf(e *logEntry) int64 { return e.row }

// CompleteLog fills out with the whole log of one generation: what Edit logged, and what the batch that was edited and the
// prior's tokenizer tell of it. Its columns are those of toedit.log.SCHEMA.
//
// The batch has the columns input_ids, attention_mask, labels, key and offset as Edit got them, and ids_hash (uint64) of its
// scores: a batch that was changed since is refused.
func CompleteLog(priorHandle uint64, generation int, a LogArgs) error {
	return a.run(func(b, log *arrowBatch) (*column, error) {
		p, err := lookup[*prior.Prior](priorHandle)
		if err != nil {
			return nil, err
		}
		if err := b.only("input_ids", "attention_mask", "labels", "key", "offset", "ids_hash"); err != nil {
			return nil, err
		}
		rows, err := newLoggedRows(b, p.VocabSize)
		if err != nil {
			return nil, err
		}
		c := completion{entries: make([]logEntry, log.rows), labelled: rows.labels != nil}
		// Ids of a tokenizer whose tokens are no bytes of text are logged without text.
		if c.text, err = p.Text(); err != nil {
			c.text = nil
		}
		if err := c.read(log, int32(generation)); err != nil {
			return nil, err
		}
		if len(c.entries) == 0 {
			return c.build()
		}
		hashes, err := columnAs[*array.Uint64](b, "the batch", "ids_hash")
		if err != nil {
			return nil, err
		}
		for group := range groups(c.entries, rowOf) {
			row, err := rows.row(group[0].row)
			if err != nil {
				return nil, err
			}
			if err := c.complete(rows, row, hashes.Value(row), group); err != nil {
				return nil, err
			}
		}
		return c.build()
	})
}

// row is a row that a log names.
func (r *loggedRows) row(row int64) (int, error) {
	if row < 0 || row >= int64(r.rows) {
		return 0, fail(Input, "the log has row %d, but the batch has %d rows; pass the rows that the log is of (toedit.log.select takes those of a part)", row, r.rows)
	}
	return int(row), nil
}

// columnAs is a column of a type, without nulls.
func columnAs[A arrow.Array](b *arrowBatch, whose, name string) (A, error) {
	a, err := nullableAs[A](b, whose, name)
	if err == nil {
		if i := firstNull(a, 0, a.Len()); i >= 0 {
			return a, fail(Input, "%s: %s is null in row %d", whose, name, i)
		}
	}
	return a, err
}

func nullableAs[A arrow.Array](b *arrowBatch, whose, name string) (A, error) {
	a, ok := b.columns[name].(A)
	if !ok {
		has := "is missing"
		if t, ok := b.types[name]; ok {
			has = "is " + t.String()
		}
		return a, fail(Input, "%s: column %s %s; toedit.log.SCHEMA has the types of all", whose, name, has)
	}
	return a, nil
}

// completion is a log on its way from what Edit logs to the whole.
type completion struct {
	entries          []logEntry
	logp             []float32
	band             []int32
	text             *vocab.Table // nil where the tokenizer has none
	labelled         bool
	byteOffset       []int64
	oldText, newText [][]byte
}

// read reads the log that Edit makes.
func (c *completion) read(b *arrowBatch, generation int32) error {
	if b.rows == 0 {
		return nil
	}
	var columns [4][]int64
	for i, name := range []string{"row", "position", "old", "new"} {
		a, err := columnAs[*array.Int64](b, "the log", name)
		if err != nil {
			return err
		}
		columns[i] = a.Int64Values()
	}
	logp, err := columnAs[*array.Float32](b, "the log", "logp")
	if err != nil {
		return err
	}
	band, err := columnAs[*array.Int32](b, "the log", "band")
	if err != nil {
		return err
	}
	c.logp, c.band = logp.Float32Values(), band.Int32Values()
	for i := range c.entries {
		e := &c.entries[i]
		e.row, e.position, e.edit.Old, e.edit.New = columns[0][i], columns[1][i], columns[2][i], columns[3][i]
		e.generation = generation
		switch e.edit.New {
		case dropped:
			e.edit.Action = editor.Drop
		case e.edit.Old:
			e.edit.Action = editor.MaskLoss
		}
	}
	return nil
}

// complete completes the entries of one row, which are the next ones.
func (c *completion) complete(rows *loggedRows, row int, hash uint64, entries []logEntry) error {
	var d document
	if err := rows.read(&d, row); err != nil {
		return err
	}
	of := editor.HashBytes(littleEndian(d.ids))
	if of.Lo != hash {
		return fail(Input, "row %d: its ids were changed after they were edited; read the log before that", row)
	}
	key := hashText(of)
	if rows.key != nil {
		key = rows.key(row)
	}
	labels := rows.rowLabels(row, &d)
	var g editor.LoggedGeneration
	for i := range entries {
		e := &entries[i]
		e.edit.Pos = e.position - rows.offset(row)
		if e.edit.Pos < 0 || e.edit.Pos >= int64(len(d.ids)) {
			return fail(Input, "row %d: the log has position %d, which the row lacks", row, e.position)
		}
		e.edit.Context = labels != nil && labels[e.edit.Pos] == ignored
		g.Edits = append(g.Edits, e.edit)
	}
	if err := g.Seal(d.ids); err != nil {
		return fail(Input, "row %d: the log's %w", row, err)
	}
	g.Edits = nil
	bytes, at := int64(0), int64(0)
	for i := range entries {
		e := &entries[i]
		e.key, e.hashes = key, g
		if c.text == nil {
			continue
		}
		for ; at < e.edit.Pos; at++ {
			bytes += int64(len(c.text.Bytes(d.ids[at])))
		}
		c.byteOffset = append(c.byteOffset, bytes)
		c.oldText = append(c.oldText, c.textOf(e.edit.Old))
		c.newText = append(c.newText, c.textOf(e.edit.New))
	}
	return nil
}

// textOf is what a token is in text; nil where it is none.
func (c *completion) textOf(id int64) []byte {
	if id == editor.NoID || len(c.text.Bytes(uint32(id))) == 0 {
		return nil
	}
	return c.text.Bytes(uint32(id))
}

// hashText is a document hash as 32 hexadecimal digits.
func hashText(h editor.Hash128) string { return fmt.Sprintf("%016x%016x", h.Hi, h.Lo) }

// build makes the columns.
func (c *completion) build() (*column, error) {
	n := len(c.entries)
	if c.text == nil {
		c.byteOffset, c.oldText, c.newText = make([]int64, n), make([][]byte, n), make([][]byte, n)
	}
	keys, actions := make([][]byte, n), make([][]byte, n)
	for i := range c.entries {
		// Never nil, which is null: a key may be empty.
		keys[i] = append([]byte{}, c.entries[i].key...)
		actions[i] = []byte(c.entries[i].edit.Action.String())
	}
	for _, text := range [][][]byte{keys, c.oldText, c.newText} {
		if total(text) > math.MaxInt32 {
			return nil, fail(Input, "a log with more than %d bytes of text is too large for its columns; edit fewer rows at a time", math.MaxInt32)
		}
	}
	i32, i64, u64 := arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64, arrow.PrimitiveTypes.Uint64
	return structOf(n,
		entryColumn("row", i64, c.entries, func(_ int, e *logEntry) int64 { return e.row }),
		entryColumn("position", i64, c.entries, func(_ int, e *logEntry) int64 { return e.position }),
		entryColumn("old", i64, c.entries, func(_ int, e *logEntry) int64 { return e.edit.Old }),
		entryColumn("new", i64, c.entries, func(_ int, e *logEntry) int64 { return e.edit.New }).
			markNulls(func(i int) bool { return c.entries[i].edit.Action == editor.Drop }),
		textColumn("key", arrow.BinaryTypes.String, keys),
		entryColumn("generation", i32, c.entries, func(_ int, e *logEntry) int32 { return e.generation }),
		copiedColumn("byte_offset", i64, c.byteOffset).markNulls(func(int) bool { return c.text == nil }),
		textColumn("old_text", arrow.BinaryTypes.Binary, c.oldText),
		textColumn("new_text", arrow.BinaryTypes.Binary, c.newText),
		entryColumn("p", arrow.PrimitiveTypes.Float64, c.entries, func(i int, _ *logEntry) float64 { return editor.P(c.logp[i]) }),
		copiedColumn("logp", arrow.PrimitiveTypes.Float32, c.logp),
		copiedColumn("band", i32, c.band),
		textColumn("action", arrow.BinaryTypes.String, actions),
		flagsColumn("context", n, func(i int) bool { return c.entries[i].edit.Context }).markNulls(func(int) bool { return !c.labelled }),
		entryColumn("ids_hash", u64, c.entries, func(_ int, e *logEntry) uint64 { return e.hashes.IDsHash }),
		entryColumn("edited_hash", u64, c.entries, func(_ int, e *logEntry) uint64 { return e.hashes.EditedHash }),
		entryColumn("edits_hash", u64, c.entries, func(_ int, e *logEntry) uint64 { return e.hashes.EditsHash }),
	), nil
}

func entryColumn[T any](name string, t arrow.DataType, entries []logEntry, of func(i int, e *logEntry) T) *column {
	b, values := newBuffer[T](len(entries))
	for i := range entries {
		values[i] = of(i, &entries[i])
	}
	return valueColumn(name, t, len(entries), b)
}

// ApplyLog makes a log's edits, all generations of it, in a batch that was not edited. Labels follow as a policy's labels say.
//
// The batch has the column input_ids and may have attention_mask, labels, key and offset. The log has those of
// toedit.log.SCHEMA that decide ids and labels. out: input_ids and, if given, labels in the types that came in; where the log
// drops tokens, also source, for each value the index in its row that it comes from, -1 where it comes from the log.
func ApplyLog(labels string, a LogArgs) error {
	return a.run(func(b, log *arrowBatch) (*column, error) {
		if labels != editor.LabelsEdited && labels != editor.LabelsOriginal {
			return nil, fail(Input, "labels is %q; it must be %q or %q", labels, editor.LabelsEdited, editor.LabelsOriginal)
		}
		return replayLog(b, log, func(r *editor.Replay, generations []loggedGeneration) error {
			for i := range generations {
				if err := generations[i].wrap(r.Apply(&generations[i].LoggedGeneration, labels)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// RevertLog takes a log's edits back, all generations of it, in a batch that they were made in. Its columns are ApplyLog's.
func RevertLog(a LogArgs) error {
	return a.run(func(b, log *arrowBatch) (*column, error) {
		return replayLog(b, log, func(r *editor.Replay, generations []loggedGeneration) error {
			for i := range slices.Backward(generations) {
				if err := generations[i].wrap(r.Revert(&generations[i].LoggedGeneration)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// loggedGeneration is what a log has of one row and generation.
type loggedGeneration struct {
	editor.LoggedGeneration
	row        int
	generation int32
}

func (g *loggedGeneration) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fail(Input, "row %d, generation %d: the log's %w", g.row, g.generation, err)
}

func replayLog(b, log *arrowBatch, do func(*editor.Replay, []loggedGeneration) error) (*column, error) {
	if err := b.only("input_ids", "attention_mask", "labels", "key", "offset"); err != nil {
		return nil, err
	}
	rows, err := newLoggedRows(b, math.MaxUint32+1)
	if err != nil {
		return nil, err
	}
	entries, err := readLog(log)
	if err != nil {
		return nil, err
	}
	if n := len(entries); n > 0 {
		for _, e := range []*logEntry{&entries[0], &entries[n-1]} {
			if _, err := rows.row(e.row); err != nil {
				return nil, err
			}
		}
	}
	out := replayed{ids: newRebuilt(b, "input_ids"), source: make([]int32, 0)}
	if rows.labels != nil {
		out.labels = newRebuilt(b, "labels")
	}
	next := 0
	for group := range groups(entries, rowOf) {
		row := int(group[0].row)
		generations, err := rows.generations(row, group)
		if err != nil {
			return nil, err
		}
		for ; next < row; next++ {
			out.keep(rows, next)
		}
		if err := out.replay(rows, row, func(r *editor.Replay) error { return do(r, generations) }); err != nil {
			return nil, err
		}
		next++
	}
	for ; next < rows.rows; next++ {
		out.keep(rows, next)
	}
	return out.build(slices.ContainsFunc(entries, func(e logEntry) bool { return e.edit.Action == editor.Drop }))
}

// readLog reads a whole log, in order of row, generation and position.
func readLog(b *arrowBatch) ([]logEntry, error) {
	if b.rows == 0 {
		return nil, nil
	}
	const log = "the log"
	row, err1 := columnAs[*array.Int64](b, log, "row")
	position, err2 := columnAs[*array.Int64](b, log, "position")
	before, err3 := columnAs[*array.Int64](b, log, "old")
	after, err4 := nullableAs[*array.Int64](b, log, "new")
	key, err5 := columnAs[*array.String](b, log, "key")
	generation, err6 := columnAs[*array.Int32](b, log, "generation")
	action, err7 := columnAs[*array.String](b, log, "action")
	context, err8 := nullableAs[*array.Boolean](b, log, "context")
	idsHash, err9 := columnAs[*array.Uint64](b, log, "ids_hash")
	editedHash, err10 := columnAs[*array.Uint64](b, log, "edited_hash")
	editsHash, err11 := columnAs[*array.Uint64](b, log, "edits_hash")
	if err := cmp.Or(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10, err11); err != nil {
		return nil, err
	}
	entries := make([]logEntry, b.rows)
	for i := range entries {
		a, ok := editor.ActionNamed(action.Value(i))
		if !ok {
			return nil, fail(Input, "the log: action is %q in row %d, which is none", action.Value(i), i)
		}
		entries[i] = logEntry{
			row: row.Value(i), position: position.Value(i), generation: generation.Value(i), key: key.Value(i),
			edit:   editor.LoggedEdit{Old: before.Value(i), New: after.Value(i), Action: a, Context: isValid(context, i) && context.Value(i)},
			hashes: editor.LoggedGeneration{IDsHash: idsHash.Value(i), EditedHash: editedHash.Value(i), EditsHash: editsHash.Value(i)},
		}
		if !isValid(after, i) {
			entries[i].edit.New = editor.NoID
		}
	}
	slices.SortStableFunc(entries, func(a, b logEntry) int {
		return cmp.Or(cmp.Compare(a.row, b.row), cmp.Compare(a.generation, b.generation), cmp.Compare(a.position, b.position))
	})
	return entries, nil
}

// isValid asks the bitmap, as firstNull does.
func isValid(a arrow.Array, i int) bool {
	valid := a.NullBitmapBytes()
	return len(valid) == 0 || bitutil.BitIsSet(valid, a.Data().Offset()+i)
}

// generations are the entries of a row by generation.
func (r *loggedRows) generations(row int, entries []logEntry) ([]loggedGeneration, error) {
	var all []loggedGeneration
	offset := r.offset(row)
	for group := range groups(entries, func(e *logEntry) int32 { return e.generation }) {
		g := loggedGeneration{LoggedGeneration: group[0].hashes, row: row, generation: group[0].generation}
		for i := range group {
			e := &group[i]
			if r.key != nil && e.key != r.key(row) {
				return nil, fail(Input, "row %d: the log's key is %q, but the row's is %q; pass the rows in the order that they were edited in", row, e.key, r.key(row))
			}
			if e.position < offset {
				return nil, fail(Input, "row %d: the log's position is %d, but the row begins at %d; name the offset column that the editor had, or none", row, e.position, offset)
			}
			if h := e.hashes; h.IDsHash != g.IDsHash || h.EditedHash != g.EditedHash || h.EditsHash != g.EditsHash {
				return nil, fail(Input, "row %d, generation %d: the log's hashes differ between its edits: rows of it are of two logs, or were changed; use it as it was written", row, g.generation)
			}
			e.edit.Pos = e.position - offset
			g.Edits = append(g.Edits, e.edit)
		}
		all = append(all, g)
	}
	return all, nil
}

// rebuilt is a list column that is made anew, since its rows may get other lengths.
type rebuilt struct {
	name   string
	t      arrow.ListLikeType
	values []int64
	ends   []int
}

func newRebuilt(b *arrowBatch, name string) *rebuilt {
	return &rebuilt{name: name, t: b.types[name].(arrow.ListLikeType)}
}

// column is the column. The values fit its type.
func (c *rebuilt) column() *column {
	var offsets buffer
	end := func(row int) int { return c.ends[row] }
	switch c.t.ID() {
	case arrow.LIST:
		offsets = newOffsets[int32](len(c.ends), end)
	case arrow.LARGE_LIST:
		offsets = newOffsets[int64](len(c.ends), end)
	}
	var values *column
	switch elem := c.t.Elem(); elem.ID() {
	case arrow.INT64:
		values = copiedColumn("", elem, c.values)
	case arrow.UINT16:
		values = narrowedColumn[uint16](elem, c.values)
	default: // the same bits, signed or not
		values = narrowedColumn[uint32](elem, c.values)
	}
	return listColumnOf(c.name, c.t, len(c.ends), offsets, values)
}

func narrowedColumn[T uint16 | uint32](t arrow.DataType, values []int64) *column {
	b, narrow := newBuffer[T](len(values))
	for i, v := range values {
		narrow[i] = T(v)
	}
	return valueColumn("", t, len(values), b)
}

// largestID is the largest that ids of a type can be.
func largestID(t arrow.DataType) int64 {
	switch t.ID() {
	case arrow.UINT16:
		return math.MaxUint16
	case arrow.INT32:
		return math.MaxInt32
	}
	return math.MaxUint32
}

// replayed is a batch after a log was applied or reverted.
type replayed struct {
	ids, labels *rebuilt // labels: nil where there are none
	source      []int32  // the index in its row that each value comes from; -1: from the log
	d           document
}

// keep takes over a row as it is.
func (o *replayed) keep(rows *loggedRows, row int) {
	start, end := rows.ids.row(row)
	for i := start; i < end; i++ {
		o.put(rows.at(i), int32(i-start))
	}
	if o.labels != nil {
		start, end := rows.labels.row(row)
		for i := start; i < end; i++ {
			o.labels.values = append(o.labels.values, rows.labels.at(i))
		}
	}
	o.endRow()
}

func (o *replayed) put(id int64, source int32) {
	o.ids.values = append(o.ids.values, id)
	o.source = append(o.source, source)
}

func (o *replayed) endRow() {
	o.ids.ends = append(o.ids.ends, len(o.ids.values))
	if o.labels != nil {
		o.labels.ends = append(o.labels.ends, len(o.labels.values))
	}
}

// replay takes over a row as do leaves it. Padding stays: a token that comes back stands behind the one before it, or before
// the one behind it where it is the first.
func (o *replayed) replay(rows *loggedRows, row int, do func(*editor.Replay) error) error {
	if err := rows.read(&o.d, row); err != nil {
		return err
	}
	r := editor.NewReplay(o.d.ids, rows.rowLabels(row, &o.d))
	if err := do(r); err != nil {
		return err
	}
	start, end := rows.ids.row(row)
	if o.ids.t.ID() == arrow.FIXED_SIZE_LIST && len(r.IDs) != len(o.d.ids) {
		return fail(Input, "row %d: column input_ids is %s, whose rows cannot get another length, but the log drops tokens; pass rows of their own length", row, o.ids.t)
	}
	next, real := 0, 0 // where the row and its real tokens are
	padding := func(to int) {
		for ; next < to; next++ {
			if real < len(o.d.ids) && int(o.d.index(int32(real))) == next {
				real++ // a token that is dropped
				continue
			}
			o.put(rows.at(start+next), int32(next))
			if o.labels != nil {
				first, _ := rows.labels.row(row)
				o.labels.values = append(o.labels.values, rows.labels.at(first+next))
			}
		}
	}
	if i := slices.IndexFunc(r.Source, func(s int32) bool { return s >= 0 }); i > 0 {
		padding(int(o.d.index(r.Source[i])))
	}
	for i, id := range r.IDs {
		source := int32(-1)
		if s := r.Source[i]; s >= 0 {
			source = o.d.index(s)
			padding(int(source))
			next, real = int(source)+1, int(s)+1
		}
		if int64(id) > largestID(o.ids.t.Elem()) || o.labels != nil && r.Labels[i] > largestID(o.labels.t.Elem()) {
			return fail(Input, "row %d: the log has id %d, which does not fit the column; use int64 ids and labels", row, id)
		}
		o.put(int64(id), source)
		if o.labels != nil {
			o.labels.values = append(o.labels.values, r.Labels[i])
		}
	}
	padding(end - start)
	o.endRow()
	return nil
}

func (o *replayed) build(drops bool) (*column, error) {
	if len(o.ids.values) > math.MaxInt32 {
		return nil, fail(Input, "a batch with %d ids is too large; pass fewer rows at a time", len(o.ids.values))
	}
	out := structOf(len(o.ids.ends), o.ids.column())
	if o.labels != nil {
		out.children = append(out.children, o.labels.column())
	}
	if drops {
		offsets := newOffsets[int32](len(o.ids.ends), func(row int) int { return o.ids.ends[row] })
		out.children = append(out.children, listColumnOf("source", arrow.ListOf(arrow.PrimitiveTypes.Int32), len(o.ids.ends), offsets,
			copiedColumn("", arrow.PrimitiveTypes.Int32, o.source)))
	}
	return out, nil
}
