package capi

import (
	"errors"
	"slices"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"

	"toedit/editor"
	"toedit/editor/scorer"
)

// The scores column, version 1: one struct a document. Its fields, in this order when written, in any order when read.
var scoresFields = []string{"logp", "topk_pos", "topk_ids", "topk_logp", "k", "ids_hash", "prior"}

// scoresColumn reads a scores column without copying.
type scoresColumn struct {
	logp, pos, ids, topLogp *listColumn
	logpValues              *array.Float32
	posValues, idsValues    []int32
	topLogpValues           []float32
	k                       []int32
	hash                    []uint64
	prior                   func(int) string
}

func newScoresColumn(column arrow.Array) (*scoresColumn, error) {
	s, ok := column.(*array.Struct)
	if !ok {
		return nil, fail(Scores, "column scores is %s, but must be the struct that Prior.score returns", column.DataType())
	}
	if i := firstNull(s, 0, s.Len()); i >= 0 {
		return nil, fail(Scores, "row %d: scores is null; score it with Prior.score first", i)
	}
	t := s.DataType().(*arrow.StructType)
	fields := map[string]arrow.Array{}
	for i := range s.NumField() {
		fields[t.Field(i).Name] = s.Field(i)
	}
	for _, name := range scoresFields {
		f, ok := fields[name]
		if !ok {
			return nil, fail(Scores, "column scores has no field %q; make it with Prior.score", name)
		}
		if i := firstNull(f, 0, f.Len()); i >= 0 {
			return nil, fail(Scores, "row %d: scores.%s is null; score the row with Prior.score", i, name)
		}
	}
	c := &scoresColumn{}
	for i, l := range []**listColumn{&c.logp, &c.pos, &c.ids, &c.topLogp} {
		var err error
		if *l, err = newListColumn("scores."+scoresFields[i], fields[scoresFields[i]]); err == nil && i > 0 {
			err = (*l).noNullValues() // of logp's values any may be null
		}
		if err != nil {
			return nil, &Error{Scores, errors.Unwrap(err)}
		}
	}
	wrong := func(name string, got arrow.Array, want string) error {
		return fail(Scores, "scores.%s is %s, but must be %s", name, got.DataType(), want)
	}
	if c.logpValues, ok = c.logp.values.(*array.Float32); !ok {
		return nil, wrong("logp", c.logp.lists, "list<float32>")
	}
	pos, ok1 := c.pos.values.(*array.Int32)
	ids, ok2 := c.ids.values.(*array.Int32)
	if !ok1 {
		return nil, wrong("topk_pos", c.pos.lists, "list<int32>")
	}
	if !ok2 {
		return nil, wrong("topk_ids", c.ids.lists, "list<int32>")
	}
	topLogp, ok := c.topLogp.values.(*array.Float32)
	if !ok {
		return nil, wrong("topk_logp", c.topLogp.lists, "list<float32>")
	}
	c.posValues, c.idsValues, c.topLogpValues = pos.Int32Values(), ids.Int32Values(), topLogp.Float32Values()
	k, ok := fields["k"].(*array.Int32)
	if !ok {
		return nil, wrong("k", fields["k"], "int32")
	}
	c.k = k.Int32Values()
	hash, ok := fields["ids_hash"].(*array.Uint64)
	if !ok {
		return nil, wrong("ids_hash", fields["ids_hash"], "uint64")
	}
	c.hash = hash.Uint64Values()
	if c.prior, ok = stringValues(fields["prior"]); !ok {
		return nil, wrong("prior", fields["prior"], "string")
	}
	return c, nil
}

func stringValues(a arrow.Array) (func(int) string, bool) {
	switch a := a.(type) {
	case *array.String:
		return a.Value, true
	case *array.LargeString:
		return a.Value, true
	}
	return nil, false
}

// row fills s with views of row i.
func (c *scoresColumn) row(i int, s *editor.Scores) {
	from, to := c.logp.row(i)
	s.LogP = c.logpValues.Float32Values()[from:to]
	s.Valid, s.ValidOffset, s.NullCount = nil, 0, 0
	if valid := c.logpValues.NullBitmapBytes(); len(valid) > 0 {
		at := c.logpValues.Data().Offset() + from
		if nulls := to - from - bitutil.CountSetBits(valid, at, to-from); nulls > 0 {
			s.Valid, s.ValidOffset, s.NullCount = valid, at, nulls
		}
	}
	from, to = c.pos.row(i)
	s.TopPos = c.posValues[from:to]
	from, to = c.ids.row(i)
	s.TopIDs = c.idsValues[from:to]
	from, to = c.topLogp.row(i)
	s.TopLogP = c.topLogpValues[from:to]
	s.K, s.IDsHash = int(c.k[i]), c.hash[i]
}

// newScores builds the scores column of scored rows. hashes are the documents' low hash halves.
func newScores(rows []scorer.Row, hashes []uint64, k int, fingerprint string) *column {
	n := len(rows)
	f32, i32 := arrow.PrimitiveTypes.Float32, arrow.PrimitiveTypes.Int32
	logp := lists(rows, "logp", f32, func(r *scorer.Row) []float32 { return r.LogP })
	unscored := 0
	for i := range rows {
		unscored += rows[i].Unscored
	}
	if unscored > 0 {
		logp.children[0].markUnscored(unscored)
	}
	priors := &column{name: "prior", dataType: arrow.BinaryTypes.String, length: n}
	offsets, ends := newBuffer[int32](n + 1)
	text, bytes := newBuffer[byte](n * len(fingerprint))
	for i := range n + 1 {
		ends[i] = int32(i * len(fingerprint))
	}
	for i := range n {
		copy(bytes[ends[i]:], fingerprint)
	}
	priors.buffers = []buffer{{}, offsets, text}
	return structOf(n, logp,
		lists(rows, "topk_pos", i32, func(r *scorer.Row) []int32 { return r.TopPos }),
		lists(rows, "topk_ids", i32, func(r *scorer.Row) []int32 { return r.TopIDs }),
		lists(rows, "topk_logp", f32, func(r *scorer.Row) []float32 { return r.TopLogP }),
		copiedColumn("k", i32, slices.Repeat([]int32{int32(k)}, n)),
		copiedColumn("ids_hash", arrow.PrimitiveTypes.Uint64, hashes),
		priors,
	)
}

// lists is a list column of one slice a row.
func lists[T any](rows []scorer.Row, name string, t arrow.DataType, of func(*scorer.Row) []T) *column {
	offsets, ends := newBuffer[int32](len(rows) + 1)
	ends[0] = 0
	for i := range rows {
		ends[i+1] = ends[i] + int32(len(of(&rows[i])))
	}
	total := int(ends[len(rows)])
	b, values := newBuffer[T](total)
	for i := range rows {
		copy(values[ends[i]:], of(&rows[i]))
	}
	return listColumnOf(name, arrow.ListOf(t), len(rows), offsets, valueColumn("", t, total, b))
}

// markUnscored makes nulls of the values that are NaN, with 0 beneath them.
func (c *column) markUnscored(nulls int) {
	values := unsafe.Slice((*float32)(c.buffers[1].pointer), c.length)
	valid, bits := newBuffer[byte](int(bitutil.BytesForBits(int64(c.length))))
	clear(bits)
	for i, v := range values {
		if v != v {
			values[i] = 0
		} else {
			bitutil.SetBit(bits, i)
		}
	}
	c.buffers[0], c.nulls = valid, nulls
}
