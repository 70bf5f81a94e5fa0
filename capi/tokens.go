package capi

// #include "export.h"
import "C"

import (
	"math"
	"unsafe"

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
		b, p, err := importRows(priorHandle, batch, schema)
		if err != nil {
			return err
		}
		var o readOptions
		if err := parseStrictly(options, &o, `{"split_after": 2}`); err != nil {
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

// importRows imports a batch with columns that scoring reads, and looks up a prior.
func importRows(priorHandle uint64, batch, schema Address) (*arrowBatch, *prior.Prior, error) {
	b, err := importBatch(batch, schema)
	if err != nil {
		return nil, nil, err
	}
	p, err := lookup[*prior.Prior](priorHandle)
	if err != nil {
		return nil, nil, err
	}
	return b, p, b.only(append([]string{"input_ids", "attention_mask"}, packedColumns...)...)
}

// HashRows fills words, three times n uint64, with what the scores of n rows follow from, beside the prior: the low halves of
// their document hashes, the high halves, and how many real tokens they have. After an error nothing is to be read there.
//
// It takes the columns that StartScore takes. A row that holds several documents is refused: its scores depend on where they
// begin, which its hash does not know.
func HashRows(priorHandle, batch, schema, words Address, n int) error {
	defer releaseBoth(batch, schema)
	return guarded(func() error {
		b, p, err := importRows(priorHandle, batch, schema)
		if err != nil {
			return err
		}
		if words == 0 || n != b.rows {
			return fail(Input, "the words of %d rows are at address %#x, but the batch has %d rows", n, words, b.rows)
		}
		out := unsafe.Slice((*uint64)(C.toedit_pointer(C.uint64_t(words))), 3*n)
		return eachRow(b, p.VocabSize, nil, func(i int, ids []uint32, starts []int32) error {
			if len(starts) > 0 {
				return fail(Input, "row %d holds several documents (another one begins at token %d), and its scores depend on where they begin; give each document a row of its own, or store the scores in a column", i, starts[0])
			}
			h := editor.HashBytes(littleEndian(ids))
			out[i], out[n+i], out[2*n+i] = h.Lo, h.Hi, uint64(len(ids))
			return nil
		})
	})
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
