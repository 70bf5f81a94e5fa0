package capi

import (
	"math"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"

	"toedit/editor/prior"
	"toedit/editor/text"
	"toedit/editor/vocab"
)

// OpenTokens opens a tokenizer.json, given as its text, for its tokens' bytes. The handle is closed with Close.
func OpenTokens(tokenizerJSON string) (handle uint64, err error) {
	err = guarded(func() error {
		table, err := vocab.Read([]byte(tokenizerJSON))
		if err != nil {
			return &Error{Input, err}
		}
		handle = handles.add(table)
		return nil
	})
	return handle, err
}

// tokensOf are the tokens of a prior or of a tokenizer that OpenTokens opened.
func tokensOf(handle uint64) (*vocab.Table, error) {
	if table, err := lookup[*vocab.Table](handle); err == nil {
		return table, nil
	}
	p, err := lookup[*prior.Prior](handle)
	if err != nil {
		return nil, err
	}
	table, err := p.Text()
	if err != nil {
		return nil, &Error{Prior, err}
	}
	return table, nil
}

// TextArgs are the Arrow structures of one call of EditText or Stretches.
type TextArgs struct {
	Batch, Schema, Edits, EditsSchema, Out, OutSchema, Other, OtherSchema Address
}

// EditText makes edits of tokens in the texts that the tokens were made of. The tokens are those of a prior or of OpenTokens.
//
// The batch has the columns text (string or large_string), input_ids, and offsets where the tokenizer gave them: a list of
// int32, for each token where it begins and ends, in characters; an empty list where they are not needed. Rows are aligned by
// their tokens' bytes, or else by their offsets (see package text).
//
// The edits are a struct of int64: row, position (in the row) and new (-1: the token is taken out), in ascending order.
//
// Out is a struct of
//   - text: the edited texts, in the type that came in,
//   - aligned (int8): 0 where a row has edits, but its tokens were not found in it, so that none was made.
//
// Other is a struct with a row for each edit:
//   - start, end (int64): the bytes of the original text that it replaced, -1 in a row that is not aligned,
//   - length (int64): how many bytes stand there now,
//   - made (int8): 0 where it was not made.
func EditText(handle uint64, a TextArgs) error {
	return a.run(handle, []string{"row", "position", "new"}, func(in *textInput) (out, other *column, err error) {
		return in.edit(in.edits[1], in.edits[2])
	})
}

// Stretches finds what must be tokenised anew in rows of another tokenizer after edits of the text. The tokens are those of a
// prior or of OpenTokens.
//
// The batch has the columns of EditText, and edited: the edited texts. The edits are a struct of int64: row, start and end
// (bytes of the text, ascending) and length (of what stands there now).
//
// Out is a struct of aligned (int8): 0 where a row has edits, but its tokens were not found in it. All of it is then one stretch.
//
// Other is a struct with a row for each stretch, in ascending order:
//   - row, first, end (int64): its tokens,
//   - left, right (int64): how many of them, at either end, are context that no edit touches,
//   - old, new: its text before and after, in the type that came in.
func Stretches(handle uint64, a TextArgs) error {
	return a.run(handle, []string{"row", "start", "end", "length"}, func(in *textInput) (out, other *column, err error) {
		return in.stretches()
	})
}

// run imports what came in, and exports what do makes of it.
func (a TextArgs) run(handle uint64, edits []string, do func(*textInput) (out, other *column, err error)) error {
	defer releaseBoth(a.Batch, a.Schema)
	defer releaseBoth(a.Edits, a.EditsSchema)
	missing := zeroOut(a.Out, a.OutSchema)
	if err := zeroOut(a.Other, a.OtherSchema); missing == nil {
		missing = err
	}
	return guarded(func() error {
		if missing != nil {
			return missing
		}
		tokens, err := tokensOf(handle)
		if err != nil {
			return err
		}
		in := &textInput{tokens: tokens}
		if in.batch, err = importBatch(a.Batch, a.Schema); err != nil {
			return err
		}
		if err := in.readEdits(a.Edits, a.EditsSchema, edits); err != nil {
			return err
		}
		if err := in.readRows(); err != nil {
			return err
		}
		out, other, err := do(in)
		if err != nil {
			return err
		}
		if err := export(out, a.Out, a.OutSchema); err != nil {
			other.free()
			return err
		}
		if err := export(other, a.Other, a.OtherSchema); err != nil {
			releaseBoth(a.Out, a.OutSchema)
			return err
		}
		return nil
	})
}

// textInput is what EditText and Stretches read.
type textInput struct {
	tokens   *vocab.Table
	batch    *arrowBatch
	textType arrow.DataType
	text     func(int) string
	edited   func(int) string // of Stretches
	read     rowReader
	offsets  *listColumn // nil: none were given
	edits    [][]int64   // by column, the row first

	doc document // the row that is worked on
	row text.Row
}

// readEdits reads the edits' columns, all int64 without nulls.
func (in *textInput) readEdits(address, schema Address, names []string) error {
	b, err := importBatch(address, schema)
	if err != nil {
		return err
	}
	if err := b.only(names...); err != nil {
		return err
	}
	in.edits = make([][]int64, len(names))
	for i, name := range names {
		t, ok := b.types[name]
		if !ok || t.ID() != arrow.INT64 {
			return fail(Input, "the edits' column %s is missing or is not int64", name)
		}
		if b.rows == 0 {
			continue
		}
		c := b.columns[name].(*array.Int64)
		if null := firstNull(c, 0, c.Len()); null >= 0 {
			return fail(Input, "edit %d: its %s is null", null, name)
		}
		in.edits[i] = c.Int64Values()
	}
	last := int64(0)
	for i, row := range in.edits[0] {
		if row < last || row >= int64(in.batch.rows) {
			return fail(Input, "edit %d is in row %d, after row %d of %d rows; edits must be in order", i, row, last, in.batch.rows)
		}
		last = row
	}
	return nil
}

// readRows reads the batch's columns.
func (in *textInput) readRows() error {
	known := []string{"text", "input_ids", "offsets"}
	if len(in.edits) == 4 {
		known = append(known, "edited")
	}
	b := in.batch
	if err := b.only(known...); err != nil {
		return err
	}
	t, ok := b.types["text"]
	if !ok || t.ID() != arrow.STRING && t.ID() != arrow.LARGE_STRING {
		return fail(Input, "the column text is missing, or is not string or large_string")
	}
	in.textType = t
	ids, err := b.tokenColumn()
	if err != nil {
		return err
	}
	if b.rows == 0 {
		return nil
	}
	if in.text, err = b.strings("text"); err != nil {
		return err
	}
	if len(in.edits) == 4 {
		if in.edited, err = b.strings("edited"); err != nil {
			return err
		}
	}
	if in.offsets, err = b.list("offsets"); err != nil {
		return err
	}
	if in.offsets != nil {
		if _, ok := in.offsets.values.(*array.Int32); !ok {
			return fail(Input, "offsets holds %s, but must hold int32", in.offsets.values.DataType())
		}
		if err := in.offsets.noNullValues(); err != nil {
			return err
		}
	}
	in.read, err = ids.rowReader(nil, in.tokens.Size())
	return err
}

// strings is a column of strings without nulls, of a batch that has rows.
func (b *arrowBatch) strings(name string) (func(int) string, error) {
	c, ok := b.columns[name]
	if !ok {
		return nil, fail(Input, "the batch has no column %s", name)
	}
	values, ok := stringValues(c)
	if !ok {
		return nil, fail(Input, "the column %s is %s, but must be string or large_string", name, c.DataType())
	}
	if i := firstNull(c, 0, c.Len()); i >= 0 {
		return nil, fail(Input, "row %d: %s is null; drop the row or give it an empty text", i, name)
	}
	return values, nil
}

// align finds the tokens of row i in its text.
func (in *textInput) align(i int) bool {
	in.row.Text, in.row.IDs = in.text(i), in.doc.ids
	if in.row.Align(in.tokens) {
		return true
	}
	if in.offsets == nil {
		return false
	}
	start, end := in.offsets.row(i)
	return in.row.AlignTo(in.offsets.values.(*array.Int32).Int32Values()[start:end])
}

// editsOf are the indexes of the edits of row i, which begin at first.
func (in *textInput) editsOf(i, first int) (end int) {
	for end = first; end < len(in.edits[0]) && in.edits[0][end] == int64(i); end++ {
	}
	return end
}

func (in *textInput) edit(positions, news []int64) (out, other *column, err error) {
	texts := newTexts(in.textType, in.batch.rows)
	size := 0
	for i := range in.batch.rows {
		size += len(in.text(i))
	}
	texts.values = make([]byte, 0, size+size/16) // edits change the length little
	aligned := make([]int8, in.batch.rows)
	var starts, ends, lengths []int64
	var made []int8
	var edits []text.Edit
	var places []text.Place
	first := 0
	for i := range in.batch.rows {
		end := in.editsOf(i, first)
		edits, places = edits[:0], places[:0]
		if first < end {
			if err := in.read(&in.doc, i); err != nil {
				return nil, nil, err
			}
		}
		for j := first; j < end; j++ {
			e := text.Edit{Pos: int(positions[j]), New: uint32(news[j]), Drop: news[j] == dropped}
			if positions[j] < 0 || e.Pos >= len(in.doc.ids) || len(edits) > 0 && e.Pos <= edits[len(edits)-1].Pos {
				return nil, nil, fail(Input, "edit %d is at position %d of row %d, which has %d tokens; positions must ascend", j, e.Pos, i, len(in.doc.ids))
			}
			if !e.Drop && (news[j] < 0 || news[j] >= int64(in.tokens.Size())) {
				return nil, nil, fail(Input, "edit %d: its new id is %d, but the tokenizer's end at %d", j, news[j], in.tokens.Size()-1)
			}
			edits = append(edits, e)
		}
		first = end
		switch {
		case len(edits) == 0:
			aligned[i] = 1
			texts.add(in.text(i))
			continue
		case in.align(i):
			aligned[i] = 1
			texts.values, places = in.row.Splice(texts.values, places, in.tokens, edits)
			texts.end()
		default:
			texts.add(in.text(i))
			for range edits {
				places = append(places, text.Place{Span: text.Span{Start: -1, End: -1}})
			}
		}
		for _, p := range places {
			starts, ends, lengths = append(starts, int64(p.Start)), append(ends, int64(p.End)), append(lengths, int64(p.Length))
			made = append(made, flag(p.Made))
		}
	}
	column, err := texts.column("text")
	if err != nil {
		return nil, nil, err
	}
	i8, i64 := arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Int64
	return structOf(in.batch.rows, column, copiedColumn("aligned", i8, aligned)),
		structOf(len(made), copiedColumn("start", i64, starts), copiedColumn("end", i64, ends), copiedColumn("length", i64, lengths), copiedColumn("made", i8, made)),
		nil
}

func flag(b bool) int8 {
	if b {
		return 1
	}
	return 0
}

func (in *textInput) stretches() (out, other *column, err error) {
	aligned := make([]int8, in.batch.rows)
	old, new := newTexts(in.textType, 0), newTexts(in.textType, 0)
	var rows, firsts, ends, lefts, rights []int64
	var places []text.Place
	var stretches []text.Stretch
	first := 0
	for i := range in.batch.rows {
		end := in.editsOf(i, first)
		if first == end {
			aligned[i] = 1
			continue
		}
		if err := in.read(&in.doc, i); err != nil {
			return nil, nil, err
		}
		before, after := in.text(i), in.edited(i)
		if places, err = in.places(places[:0], i, first, end); err != nil {
			return nil, nil, err
		}
		first = end
		if in.align(i) {
			aligned[i] = 1
			stretches = in.row.Stretches(stretches[:0], in.tokens, places)
		} else {
			stretches = append(stretches[:0], text.Stretch{
				End: len(in.doc.ids), Old: text.Span{End: len(before)}, New: text.Span{End: len(after)},
			})
		}
		for _, s := range stretches {
			rows, firsts, ends = append(rows, int64(i)), append(firsts, int64(s.First)), append(ends, int64(s.End))
			lefts, rights = append(lefts, int64(s.Left)), append(rights, int64(s.Right))
			old.add(before[s.Old.Start:s.Old.End])
			new.add(after[s.New.Start:s.New.End])
		}
	}
	oldColumn, err := old.column("old")
	if err != nil {
		return nil, nil, err
	}
	newColumn, err := new.column("new")
	if err != nil {
		oldColumn.free()
		return nil, nil, err
	}
	i64 := arrow.PrimitiveTypes.Int64
	return structOf(in.batch.rows, copiedColumn("aligned", arrow.PrimitiveTypes.Int8, aligned)),
		structOf(len(rows), copiedColumn("row", i64, rows), copiedColumn("first", i64, firsts), copiedColumn("end", i64, ends),
			copiedColumn("left", i64, lefts), copiedColumn("right", i64, rights), oldColumn, newColumn), nil
}

// places reads the edits of row i of Stretches, and checks that they make of its text one as long as the edited.
func (in *textInput) places(dst []text.Place, i, first, end int) ([]text.Place, error) {
	length, at := int64(len(in.text(i))), int64(0)
	grown := int64(0)
	for j := first; j < end; j++ {
		from, to, n := in.edits[1][j], in.edits[2][j], in.edits[3][j]
		if from < at || to < from || to > length || n < 0 || n > math.MaxInt32 {
			return nil, fail(Input, "edit %d replaces the bytes %d to %d of row %d by %d; its text has %d bytes, and edits must ascend", j, from, to, i, n, length)
		}
		at = to
		grown += n - (to - from)
		dst = append(dst, text.Place{Span: text.Span{Start: int(from), End: int(to)}, Length: int(n), Made: true})
	}
	if got := int64(len(in.edited(i))); got != length+grown {
		return nil, fail(Input, "row %d: its edited text has %d bytes, but its edits make %d of it", i, got, length+grown)
	}
	return dst, nil
}

// texts collects strings on their way out.
type texts struct {
	dataType arrow.DataType
	values   []byte
	ends     []int
}

func newTexts(t arrow.DataType, rows int) *texts {
	return &texts{dataType: t, ends: make([]int, 0, rows)}
}

func (t *texts) add(s string) {
	t.values = append(t.values, s...)
	t.end()
}

// end ends a string whose bytes were appended to values.
func (t *texts) end() { t.ends = append(t.ends, len(t.values)) }

func (t *texts) column(name string) (*column, error) {
	var offsets buffer
	if t.dataType.ID() == arrow.LARGE_STRING {
		offsets = stringOffsets[int64](t.ends)
	} else {
		if len(t.values) > math.MaxInt32 {
			return nil, fail(Input, "the texts have %d bytes, more than a string column holds; pass large_string, or fewer rows at a time", len(t.values))
		}
		offsets = stringOffsets[int32](t.ends)
	}
	values, bytes := newBuffer[byte](len(t.values))
	copy(bytes, t.values)
	return &column{name: name, dataType: t.dataType, length: len(t.ends), buffers: []buffer{{}, offsets, values}}, nil
}

func stringOffsets[T int32 | int64](ends []int) buffer {
	b, offsets := newBuffer[T](len(ends) + 1)
	offsets[0] = 0
	for i, end := range ends {
		offsets[i+1] = T(end)
	}
	return b
}
