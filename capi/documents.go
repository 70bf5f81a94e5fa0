package capi

import (
	"slices"

	"github.com/apache/arrow/go/v17/arrow/array"
)

// packedColumns say where documents begin in rows that hold several. They are the columns that trainers have for that, any
// of them; where there are more than one, a document begins where any of them says so.
var packedColumns = []string{"document_ids", "position_ids", "seq_lengths"}

// boundaries finds the documents of packed rows.
type boundaries struct {
	documentIDs, positionIDs *numberColumn // a value for each of the row's values
	lengths                  *numberColumn // a value for each document
	splitAfter               *uint32       // the id that ends a document
}

// newBoundaries looks up the columns. nil where every row is one document.
func newBoundaries(b *arrowBatch, ids *listColumn, splitAfter *uint32) (*boundaries, error) {
	found := &boundaries{splitAfter: splitAfter}
	for _, c := range []struct {
		name   string
		column **numberColumn
	}{{"document_ids", &found.documentIDs}, {"position_ids", &found.positionIDs}, {"seq_lengths", &found.lengths}} {
		var err error
		if *c.column, err = b.numbers(c.name); err != nil {
			return nil, err
		}
		if *c.column != nil && c.column != &found.lengths {
			if err := (*c.column).sameLength(ids); err != nil {
				return nil, err
			}
		}
	}
	if *found == (boundaries{}) {
		return nil, nil
	}
	return found, nil
}

// starts is where documents begin behind the row's first one, ascending, as indexes among its real tokens.
func (b *boundaries) starts(row int, d *document) ([]int32, error) {
	if b == nil {
		return nil, nil
	}
	n := len(d.ids)
	var starts []int32
	each := func(c *numberColumn, begins func(before, here int64) bool) {
		if c == nil || n == 0 {
			return
		}
		base, _ := c.row(row)
		before := c.at(base + int(d.index(0)))
		for j := 1; j < n; j++ {
			here := c.at(base + int(d.index(int32(j))))
			if begins(before, here) {
				starts = append(starts, int32(j))
			}
			before = here
		}
	}
	each(b.documentIDs, func(before, here int64) bool { return here != before })
	each(b.positionIDs, func(before, here int64) bool { return here <= before })
	if b.lengths != nil {
		from, to := b.lengths.row(row)
		end := int64(0)
		for i := from; i < to; i++ {
			length := b.lengths.at(i)
			if length < 0 || length > int64(n)-end {
				return nil, fail(Input, "row %d: seq_lengths[%d] is %d, but only %d of the row's %d tokens are left", row, i-from, length, int64(n)-end, n)
			}
			if end > 0 && length > 0 {
				starts = append(starts, int32(end))
			}
			end += length
		}
		if end != int64(n) {
			return nil, fail(Input, "row %d: seq_lengths add up to %d, but the row has %d tokens", row, end, n)
		}
	}
	if b.splitAfter != nil {
		for j, id := range d.ids[:max(n-1, 0)] {
			if id == *b.splitAfter {
				starts = append(starts, int32(j+1))
			}
		}
	}
	slices.Sort(starts)
	return slices.Compact(starts), nil
}

// numberColumn is a list column of integers.
type numberColumn struct {
	*listColumn
	at func(int) int64
}

// numbers reads a list column of integers. nil where there is none.
func (b *arrowBatch) numbers(name string) (*numberColumn, error) {
	c, err := b.list(name)
	if c == nil || err != nil {
		return nil, err
	}
	if err := c.noNullValues(); err != nil {
		return nil, err
	}
	n := &numberColumn{listColumn: c}
	switch v := c.values.(type) {
	case *array.Int32:
		n.at = func(i int) int64 { return int64(v.Value(i)) }
	case *array.Int64:
		n.at = v.Value
	default:
		return nil, fail(Input, "column %s holds %s, but must hold int32 or int64", name, v.DataType())
	}
	return n, nil
}
