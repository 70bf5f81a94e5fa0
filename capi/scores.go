package capi

import (
	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"
	"github.com/apache/arrow/go/v17/arrow/memory"

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
	if s.NullN() > 0 {
		for i := range s.Len() {
			if s.IsNull(i) {
				return nil, fail(Scores, "row %d: scores is null; score it with Prior.score first", i)
			}
		}
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
		if f.NullN() > 0 {
			for i := range f.Len() {
				if f.IsNull(i) {
					return nil, fail(Scores, "row %d: scores.%s is null; score the row with Prior.score", i, name)
				}
			}
		}
	}
	c := &scoresColumn{}
	var err error
	list := func(name string) *listColumn {
		l, e := newListColumn("scores."+name, fields[name])
		if e != nil && err == nil {
			err = e
		}
		return l
	}
	c.logp, c.pos, c.ids, c.topLogp = list("logp"), list("topk_pos"), list("topk_ids"), list("topk_logp")
	if err != nil {
		return nil, err
	}
	wrong := func(name string, got arrow.Array, want string) error {
		return fail(Scores, "scores.%s is %s, but must be %s", name, got.DataType(), want)
	}
	if c.logpValues, ok = c.logp.values.(*array.Float32); !ok {
		return nil, wrong("logp", c.logp.lists, "list<float32>")
	}
	for _, l := range []*listColumn{c.pos, c.ids, c.topLogp} {
		if err := l.noNullValues(); err != nil {
			return nil, err
		}
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
	s.Valid, s.NullCount = nil, 0
	if c.logpValues.NullN() > 0 {
		s.Valid = c.logpValues.NullBitmapBytes()
		s.ValidOffset = c.logpValues.Data().Offset() + from
		s.NullCount = to - from - bitutil.CountSetBits(s.Valid, s.ValidOffset, to-from)
	}
	from, to = c.pos.row(i)
	s.TopPos = c.posValues[from:to]
	from, to = c.ids.row(i)
	s.TopIDs = c.idsValues[from:to]
	from, to = c.topLogp.row(i)
	s.TopLogP = c.topLogpValues[from:to]
	s.K, s.IDsHash = int(c.k[i]), c.hash[i]
}

// newScores builds the scores column of scored rows on the C heap. hashes are the documents' low hash halves.
func newScores(rows []scorer.Row, hashes []uint64, k int, fingerprint string) arrow.Array {
	n, tokens, unscored, top := len(rows), 0, 0, 0
	for i := range rows {
		tokens += len(rows[i].LogP)
		unscored += rows[i].Unscored
		top += len(rows[i].TopPos)
	}
	logpOffsets, logpOff := newBuffer[int32](n + 1)
	logpValues, logp := newBuffer[float32](tokens)
	posOffsets, posOff := newBuffer[int32](n + 1)
	posValues, pos := newBuffer[int32](top)
	idsOffsets, idsOff := newBuffer[int32](n + 1)
	idsValues, ids := newBuffer[int32](top * k)
	topOffsets, topOff := newBuffer[int32](n + 1)
	topValues, topLogp := newBuffer[float32](top * k)
	kValues, ks := newBuffer[int32](n)
	hashValues, hash := newBuffer[uint64](n)
	priorOffsets, priorOff := newBuffer[int32](n + 1)
	priorValues, prior := newBuffer[byte](n * len(fingerprint))
	var valid *memory.Buffer
	var bits []byte
	if unscored > 0 {
		valid, bits = newBuffer[byte](int(bitutil.BytesForBits(int64(tokens))))
	}
	t, p := 0, 0
	for i := range rows {
		r := &rows[i]
		for j, lp := range r.LogP {
			if lp == lp {
				logp[t+j] = lp
				if bits != nil {
					bitutil.SetBit(bits, t+j)
				}
			} // an unscored token's slot stays 0 under its null
		}
		copy(pos[p:], r.TopPos)
		copy(ids[p*k:], r.TopIDs)
		copy(topLogp[p*k:], r.TopLogP)
		t += len(r.LogP)
		p += len(r.TopPos)
		logpOff[i+1], posOff[i+1], idsOff[i+1], topOff[i+1] = int32(t), int32(p), int32(p*k), int32(p*k)
		ks[i], hash[i] = int32(k), hashes[i]
		copy(prior[i*len(fingerprint):], fingerprint)
		priorOff[i+1] = int32((i + 1) * len(fingerprint))
	}
	list := func(element arrow.DataType, offsets, values *memory.Buffer, n2 int, valid *memory.Buffer, nulls int) arrow.ArrayData {
		return newList(arrow.ListOf(element), n, offsets, newValues(element, n2, values, valid, nulls))
	}
	strings := arrow.BinaryTypes.String
	priorData := func() arrow.ArrayData {
		defer priorOffsets.Release()
		defer priorValues.Release()
		return arrayData(strings, n, nil, priorOffsets, priorValues)
	}
	return newStruct(n, scoresFields, []arrow.ArrayData{
		list(arrow.PrimitiveTypes.Float32, logpOffsets, logpValues, tokens, valid, unscored),
		list(arrow.PrimitiveTypes.Int32, posOffsets, posValues, top, nil, 0),
		list(arrow.PrimitiveTypes.Int32, idsOffsets, idsValues, top*k, nil, 0),
		list(arrow.PrimitiveTypes.Float32, topOffsets, topValues, top*k, nil, 0),
		newValues(arrow.PrimitiveTypes.Int32, n, kValues, nil, 0),
		newValues(arrow.PrimitiveTypes.Uint64, n, hashValues, nil, 0),
		priorData(),
	})
}

func arrayData(t arrow.DataType, n int, buffers ...*memory.Buffer) arrow.ArrayData {
	return array.NewData(t, n, buffers, nil, 0, 0)
}
