package capi

// #include "narrow.h"
import "C"

import (
	"sort"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/bitutil"
)

// tokenID is what input_ids may hold. It is the constraint of editor.Apply.
type tokenID interface {
	~int32 | ~int64 | ~uint16 | ~uint32
}

// listColumn is a list, large_list or fixed_size_list without null rows or null values.
type listColumn struct {
	name   string
	lists  array.ListLike
	values arrow.Array
}

func (b *arrowBatch) list(name string) (*listColumn, error) {
	column, ok := b.columns[name]
	if !ok {
		return nil, nil
	}
	return newListColumn(name, column)
}

func newListColumn(name string, column arrow.Array) (*listColumn, error) {
	lists, ok := column.(array.ListLike)
	if !ok {
		return nil, fail(Input, "column %s is %s, but must be a list, large_list or fixed_size_list", name, column.DataType())
	}
	c := &listColumn{name: name, lists: lists, values: lists.ListValues()}
	if i := firstNull(column, 0, column.Len()); i >= 0 {
		return nil, fail(Input, "row %d: %s is null; drop the row or give it an empty list", i, name)
	}
	return c, nil
}

// row is the range of row i in the column's values.
func (c *listColumn) row(i int) (start, end int) {
	s, e := c.lists.ValueOffsets(i)
	return int(s), int(e)
}

// noNullValues refuses null elements inside the rows.
func (c *listColumn) noNullValues() error {
	rows := c.lists.Len()
	first, _ := c.row(0)
	_, end := c.row(rows - 1)
	null := firstNull(c.values, first, end)
	if null < 0 {
		return nil
	}
	i := sort.Search(rows, func(i int) bool { _, end := c.row(i); return end > null })
	start, _ := c.row(i)
	return fail(Input, "row %d: %s[%d] is null; every token needs a value", i, c.name, null-start)
}

// firstNull is the first null of a[from:to], or -1. It asks the bitmap: null_count is only what a stranger says, and
// counting the nulls of a whole column for each batch of its rows would be slow.
func firstNull(a arrow.Array, from, to int) int {
	valid, offset := a.NullBitmapBytes(), a.Data().Offset()
	if len(valid) == 0 || bitutil.CountSetBits(valid, offset+from, to-from) == to-from {
		return -1
	}
	for i := from; ; i++ {
		if !bitutil.BitIsSet(valid, offset+i) {
			return i
		}
	}
}

// sameLength refuses a column whose rows are not as long as the ids'.
func (c *listColumn) sameLength(ids *listColumn) error {
	for i := range ids.lists.Len() {
		s, e := c.row(i)
		s2, e2 := ids.row(i)
		if e-s != e2-s2 {
			return fail(Input, "row %d: %s has %d values, but input_ids has %d", i, c.name, e-s, e2-s2)
		}
	}
	return nil
}

// flags reads a mask column: for each of its values, whether it is not zero. nil where there is no such column.
func (b *arrowBatch) flags(name string, ids *listColumn) (*flagColumn, error) {
	c, err := b.list(name)
	if c == nil || err != nil {
		return nil, err
	}
	if err := c.noNullValues(); err != nil {
		return nil, err
	}
	if err := c.sameLength(ids); err != nil {
		return nil, err
	}
	f := &flagColumn{listColumn: c}
	switch v := c.values.(type) {
	case *array.Boolean:
		f.at = v.Value
	case *array.Int8:
		f.at = nonZero(v.Int8Values())
	case *array.Uint8:
		f.at = nonZero(v.Uint8Values())
	case *array.Int16:
		f.at = nonZero(v.Int16Values())
	case *array.Int32:
		f.at = nonZero(v.Int32Values())
	case *array.Int64:
		f.at = nonZero(v.Int64Values())
	default:
		return nil, fail(Input, "column %s holds %s, but must hold bool, int8, uint8, int16, int32 or int64", name, v.DataType())
	}
	return f, nil
}

type flagColumn struct {
	*listColumn
	at func(int) bool
}

func nonZero[T int8 | uint8 | int16 | int32 | int64](values []T) func(int) bool {
	return func(i int) bool { return values[i] != 0 }
}

// document is one row's real tokens, in the form that hashes, models and the editor read. Its memory is used again for
// the next row.
type document struct {
	ids  []uint32 // may lie in the column itself
	real []int32  // index in the row of each id; nil: the row is all real
	buf  []uint32
}

// read fills the document from row values, leaving out what the attention mask calls padding. It refuses ids that the
// prior does not have.
func read[T tokenID](d *document, row int, values []T, mask *flagColumn, vocabulary int) error {
	d.real = nil
	if mask != nil {
		return readMasked(d, row, values, mask, vocabulary)
	}
	var largest uint64
	switch same := any(values).(type) {
	case []uint32:
		d.ids, largest = same, largestOf(same)
	case []int32: // the same bits; negative ids become large ones
		d.ids = unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(same))), len(same))
		largest = largestOf(d.ids)
	default:
		if cap(d.buf) < len(values) {
			d.buf = make([]uint32, len(values), 2*len(values))
		}
		d.ids = d.buf[:len(values)]
		largest = narrow(d.ids, values)
	}
	// One test for the whole row; which id it was is looked up only where there is something to say about it.
	if largest >= uint64(vocabulary) {
		for j, v := range values {
			if err := checkID(row, j, int64(v), vocabulary); err != nil {
				return err
			}
		}
	}
	return nil
}

func largestOf(ids []uint32) uint64 {
	var largest uint32
	for _, v := range ids {
		largest = max(largest, v)
	}
	return uint64(largest)
}

// narrow copies ids into uint32 and returns the largest, where ids that do not fit count as very large.
func narrow[T tokenID](dst []uint32, src []T) (largest uint64) {
	if wide, ok := any(src).([]int64); ok {
		if len(wide) == 0 {
			return 0
		}
		return uint64(C.toedit_narrow((*C.uint32_t)(&dst[0]), (*C.int64_t)(&wide[0]), C.int64_t(len(wide))))
	}
	for i, v := range src {
		largest = max(largest, uint64(int64(v)))
		dst[i] = uint32(v)
	}
	return largest
}

func readMasked[T tokenID](d *document, row int, values []T, mask *flagColumn, vocabulary int) error {
	d.buf = d.buf[:0]
	d.real = make([]int32, 0, len(values))
	base, _ := mask.row(row)
	for j, v := range values {
		if !mask.at(base + j) {
			continue
		}
		if err := checkID(row, j, int64(v), vocabulary); err != nil {
			return err
		}
		d.buf = append(d.buf, uint32(v))
		d.real = append(d.real, int32(j))
	}
	d.ids = d.buf
	return nil
}

func checkID(row, position int, id int64, vocabulary int) error {
	if id < 0 || id >= int64(vocabulary) {
		return fail(Input, "row %d: input_ids[%d] is %d, but the prior's vocabulary is 0 to %d; use the prior's own tokenizer (padding needs an attention_mask)",
			row, position, id, vocabulary-1)
	}
	return nil
}

// index is where the document's j-th token stands in the row.
func (d *document) index(j int32) int32 {
	if d.real == nil {
		return j
	}
	return d.real[j]
}

// rowReader reads a row's real tokens into a document.
type rowReader func(d *document, row int) error

// rowReader reads rows of ids, whatever their type.
func (c *listColumn) rowReader(mask *flagColumn, vocabulary int) (rowReader, error) {
	return withTokens(c.values, tokenVisitor[rowReader]{
		int64:  func(v []int64) (rowReader, error) { return readerOf(c, v, mask, vocabulary), nil },
		int32:  func(v []int32) (rowReader, error) { return readerOf(c, v, mask, vocabulary), nil },
		uint16: func(v []uint16) (rowReader, error) { return readerOf(c, v, mask, vocabulary), nil },
		uint32: func(v []uint32) (rowReader, error) { return readerOf(c, v, mask, vocabulary), nil },
	})
}

func readerOf[T tokenID](c *listColumn, values []T, mask *flagColumn, vocabulary int) rowReader {
	return func(d *document, row int) error {
		start, end := c.row(row)
		return read(d, row, values[start:end], mask, vocabulary)
	}
}

// withTokens calls do with the ids' values in their own type.
func withTokens[R any](values arrow.Array, do tokenVisitor[R]) (R, error) {
	switch v := values.(type) {
	case *array.Int64:
		return do.int64(v.Int64Values())
	case *array.Int32:
		return do.int32(v.Int32Values())
	case *array.Uint16:
		return do.uint16(v.Uint16Values())
	case *array.Uint32:
		return do.uint32(v.Uint32Values())
	}
	var none R
	return none, badTokenType(values.DataType())
}

// tokenVisitor is a function over token ids, instantiated for each of their types.
type tokenVisitor[R any] struct {
	int64  func([]int64) (R, error)
	int32  func([]int32) (R, error)
	uint16 func([]uint16) (R, error)
	uint32 func([]uint32) (R, error)
}

func badTokenType(t arrow.DataType) error {
	return fail(Input, "input_ids holds %s, but must hold int32, int64, uint16 or uint32", t)
}

// tokenColumn returns the input_ids column, checked.
func (b *arrowBatch) tokenColumn() (*listColumn, error) {
	t, ok := b.types["input_ids"]
	if !ok {
		return nil, fail(Input, "the batch has no column input_ids")
	}
	if err := checkTokenType(t); err != nil {
		return nil, err
	}
	ids, err := b.list("input_ids")
	if ids == nil || err != nil {
		return nil, err
	}
	return ids, ids.noNullValues()
}

func checkTokenType(t arrow.DataType) error {
	list, ok := t.(arrow.ListLikeType)
	if !ok {
		return fail(Input, "input_ids is %s, but must be a list, large_list or fixed_size_list of int32, int64, uint16 or uint32", t)
	}
	switch list.Elem().ID() {
	case arrow.INT32, arrow.INT64, arrow.UINT16, arrow.UINT32:
		return nil
	}
	return badTokenType(list.Elem())
}
