package capi

import (
	"math"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
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
	if column.NullN() > 0 {
		for i := range column.Len() {
			if column.IsNull(i) {
				return nil, fail(Input, "row %d: %s is null; drop the row or give it an empty list", i, name)
			}
		}
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
	if c.values.NullN() == 0 {
		return nil
	}
	for i := range c.lists.Len() {
		start, end := c.row(i)
		for j := start; j < end; j++ {
			if c.values.IsNull(j) {
				return fail(Input, "row %d: %s[%d] is null; every token needs a value", i, c.name, j-start)
			}
		}
	}
	return nil
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

// read fills the document from row values, leaving out what the attention mask calls padding.
func read[T tokenID](d *document, i int, values []T, mask *flagColumn) error {
	d.real = nil
	if mask == nil {
		if same, ok := any(values).([]uint32); ok {
			d.ids = same
			return nil
		}
		if cap(d.buf) < len(values) {
			d.buf = make([]uint32, len(values), 2*len(values))
		}
		d.ids = d.buf[:len(values)]
		// One test at the end of the row instead of one a token: no id may have a bit outside the lower 32, or the
		// sign bit of its own type.
		var outside uint64
		for j, v := range values {
			outside |= uint64(int64(v))
			d.ids[j] = uint32(v)
		}
		if outside > math.MaxUint32 {
			for j, v := range values {
				if err := checkID(i, j, int64(v)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	d.buf = d.buf[:0]
	d.real = make([]int32, 0, len(values))
	base, _ := mask.row(i)
	for j, v := range values {
		if !mask.at(base + j) {
			continue
		}
		if err := checkID(i, j, int64(v)); err != nil {
			return err
		}
		d.buf = append(d.buf, uint32(v))
		d.real = append(d.real, int32(j))
	}
	d.ids = d.buf
	return nil
}

func checkID(row, position int, id int64) error {
	if id < 0 || id > math.MaxUint32 {
		return fail(Input, "row %d: input_ids[%d] is %d, but ids are 0 to %d; use the prior's own tokenizer (padding needs an attention_mask)",
			row, position, id, uint32(math.MaxUint32))
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

// bytesOf views a slice's memory.
func bytesOf[T any](s []T) []byte {
	var zero T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(zero)))
}
