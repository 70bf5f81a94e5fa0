package capi

import (
	"math"

	"github.com/apache/arrow/go/v17/arrow"

	"toedit/editor"
	"toedit/editor/prior"
	"toedit/editor/scorer"
)

// readOptions are the settings of ReadRows, as JSON.
type readOptions struct {
	SplitAfter *uint32 `json:"split_after"`
}

// ReadRows fills out with what scoring and editing see of a batch, for scores that are made elsewhere: a struct of
//   - input_ids (list<int32>): the real tokens of each row,
//   - windows (list<int32>): how the prior reads them, four numbers a window: start, first, end, and 1 where the BOS id
//     stands in front (scorer.Window),
//   - ids_hash (uint64): the low half of the document hash.
//
// It takes the columns that StartScore takes and refuses what that refuses.
func ReadRows(priorHandle, batch, schema Address, options string, out, outSchema Address) error {
	missing := zeroOut(out, outSchema)
	defer releaseBoth(batch, schema)
	return guarded(func() error {
		if missing != nil {
			return missing
		}
		b, err := importBatch(batch, schema)
		if err != nil {
			return err
		}
		p, err := lookup[*prior.Prior](priorHandle)
		if err != nil {
			return err
		}
		var o readOptions
		if err := parseStrictly(options, &o, `{"split_after": 2}`); err != nil {
			return err
		}
		if err := b.only(append([]string{"input_ids", "attention_mask"}, packedColumns...)...); err != nil {
			return err
		}
		rows, err := copyRows(b, p.VocabSize, o.SplitAfter)
		if err != nil {
			return err
		}
		windows := make([][]int32, len(rows.ids))
		for i, ids := range rows.ids {
			var starts []int32
			if rows.starts != nil {
				starts = rows.starts[i]
			}
			for _, w := range scorer.WindowsOf(p, ids, starts) {
				prefix := int32(0)
				if w.Prefix {
					prefix = 1
				}
				windows[i] = append(windows[i], int32(w.Start), int32(w.First), int32(w.End), prefix)
			}
		}
		if longest := max(total(rows.ids), total(windows)); longest > math.MaxInt32 {
			return fail(Input, "a batch with %d values is too large for list columns, which hold %d; pass fewer rows at a time", longest, math.MaxInt32)
		}
		return export(structOf(len(rows.ids),
			concatenated("input_ids", rows.ids),
			concatenated("windows", windows),
			copiedColumn("ids_hash", arrow.PrimitiveTypes.Uint64, rows.hashes),
		), out, outSchema)
	})
}

// HashRows fills out with what a row's scores follow from, beside the prior: a struct of
//   - ids_hash and hash_high (uint64): the halves of the document hash,
//   - tokens (int32): how many real tokens the row has.
//
// It takes the columns that StartScore takes. A row that holds several documents is refused: its scores depend on where they
// begin, which its hash does not know.
func HashRows(priorHandle, batch, schema, out, outSchema Address) error {
	missing := zeroOut(out, outSchema)
	defer releaseBoth(batch, schema)
	return guarded(func() error {
		if missing != nil {
			return missing
		}
		b, err := importBatch(batch, schema)
		if err != nil {
			return err
		}
		p, err := lookup[*prior.Prior](priorHandle)
		if err != nil {
			return err
		}
		if err := b.only(append([]string{"input_ids", "attention_mask"}, packedColumns...)...); err != nil {
			return err
		}
		rows, err := hashRows(b, p.VocabSize)
		if err != nil {
			return err
		}
		u64 := arrow.PrimitiveTypes.Uint64
		return export(structOf(len(rows.low),
			copiedColumn("ids_hash", u64, rows.low),
			copiedColumn("hash_high", u64, rows.high),
			copiedColumn("tokens", arrow.PrimitiveTypes.Int32, rows.tokens),
		), out, outSchema)
	})
}

// hashedRows are the halves of each row's document hash, and how many tokens it was made of.
type hashedRows struct {
	low, high []uint64
	tokens    []int32
}

func hashRows(b *arrowBatch, vocabulary int) (*hashedRows, error) {
	rows := &hashedRows{}
	ids, err := b.tokenColumn()
	if ids == nil || err != nil {
		return rows, err
	}
	mask, err := b.flags("attention_mask", ids)
	if err != nil {
		return nil, err
	}
	packed, err := newBoundaries(b, ids, nil)
	if err != nil {
		return nil, err
	}
	rows.low, rows.high, rows.tokens = make([]uint64, b.rows), make([]uint64, b.rows), make([]int32, b.rows)
	return withTokens(ids.values, tokenVisitor[*hashedRows]{
		int64:  func(v []int64) (*hashedRows, error) { return rows, hashTokens(rows, ids, v, mask, packed, vocabulary) },
		int32:  func(v []int32) (*hashedRows, error) { return rows, hashTokens(rows, ids, v, mask, packed, vocabulary) },
		uint16: func(v []uint16) (*hashedRows, error) { return rows, hashTokens(rows, ids, v, mask, packed, vocabulary) },
		uint32: func(v []uint32) (*hashedRows, error) { return rows, hashTokens(rows, ids, v, mask, packed, vocabulary) },
	})
}

func hashTokens[T tokenID](rows *hashedRows, ids *listColumn, values []T, mask *flagColumn, packed *boundaries, vocabulary int) error {
	var d document
	for i := range rows.low {
		start, end := ids.row(i)
		if err := read(&d, i, values[start:end], mask, vocabulary); err != nil {
			return err
		}
		starts, err := packed.starts(i, &d)
		if err != nil {
			return err
		}
		if len(starts) > 0 {
			return fail(Input, "row %d holds several documents (another one begins at token %d), and its scores depend on where they begin; give each document a row of its own, or store the scores in a column", i, starts[0])
		}
		h := editor.HashBytes(littleEndian(d.ids))
		rows.low[i], rows.high[i], rows.tokens[i] = h.Lo, h.Hi, int32(len(d.ids))
	}
	return nil
}

func total[T any](rows [][]T) (n int) {
	for _, row := range rows {
		n += len(row)
	}
	return n
}

// concatenated is a list<int32> column of rows; ids are below a vocabulary's size, which an int32 holds.
func concatenated[T int32 | uint32](name string, rows [][]T) *column {
	i32 := arrow.PrimitiveTypes.Int32
	n := total(rows)
	offsets, ends := newBuffer[int32](len(rows) + 1)
	b, values := newBuffer[T](n)
	at := 0
	for i, row := range rows {
		ends[i] = int32(at)
		at += copy(values[at:], row)
	}
	ends[len(rows)] = int32(at)
	return listColumnOf(name, arrow.ListOf(i32), len(rows), offsets, valueColumn("", i32, n, b))
}
