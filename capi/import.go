package capi

// #include "export.h"
import "C"

import (
	"slices"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
)

// Address is that of a C structure, as an integer (Python and handles know no pointers).
type Address = uint64

func schemaAt(a Address) *C.struct_ArrowSchema {
	return (*C.struct_ArrowSchema)(C.toedit_pointer(C.uint64_t(a)))
}
func arrayAt(a Address) *C.struct_ArrowArray {
	return (*C.struct_ArrowArray)(C.toedit_pointer(C.uint64_t(a)))
}

// arrowBatch is a foreign record batch, checked: its columns by name, as views of the foreign memory. They are good
// until the entry point that imported them returns, and with that releases the foreign structures. A batch without rows
// has no columns, only types: the buffers of empty arrays may point anywhere.
type arrowBatch struct {
	rows    int
	types   map[string]arrow.DataType
	columns map[string]arrow.Array
}

// importBatch checks a struct array and views its columns. The structures stay the caller's to release.
func importBatch(arrayAddr, schemaAddr Address) (*arrowBatch, error) {
	if arrayAddr == 0 || schemaAddr == 0 {
		return nil, fail(Input, "the batch's ArrowArray or ArrowSchema is a null pointer")
	}
	dt, err := batchType(schemaAt(schemaAddr))
	if err != nil {
		return nil, err
	}
	t, ok := dt.(*arrow.StructType)
	if !ok {
		return nil, fail(Input, "the batch is a %s, but must be a struct array (a record batch)", dt)
	}
	foreign := arrayAt(arrayAddr)
	rows := int64(foreign.length)
	if err := checkArray(foreign, t, columnPath{name: "batch"}, 0, rows); err != nil {
		return nil, err
	}
	batch := &arrowBatch{rows: int(foreign.length), types: make(map[string]arrow.DataType, t.NumFields()), columns: make(map[string]arrow.Array, t.NumFields())}
	for i := range t.NumFields() {
		batch.types[t.Field(i).Name] = t.Field(i).Type
	}
	if batch.rows == 0 {
		return batch, nil
	}
	columns := array.NewStructData(view(foreign, t, rows))
	if i := firstNull(columns, 0, batch.rows); i >= 0 {
		return nil, fail(Input, "row %d: the whole row is null; a record batch has no such rows", i)
	}
	for i := range t.NumFields() {
		batch.columns[t.Field(i).Name] = columns.Field(i)
	}
	return batch, nil
}

// only refuses columns that the entry point does not know: a misspelt one would otherwise be ignored in silence.
func (b *arrowBatch) only(names ...string) error {
	var unknown []string
	for n := range b.types {
		if !slices.Contains(names, n) {
			unknown = append(unknown, n)
		}
	}
	if len(unknown) > 0 {
		return fail(Input, "column %q is not known here; pass only %q", slices.Min(unknown), names) // the same one every time
	}
	return nil
}

// view makes arrow-go's description of the first rows of a foreign array, over the foreign memory itself. checkArray has
// passed the last of them.
func view(a *C.struct_ArrowArray, t arrow.DataType, rows int64) arrow.ArrayData {
	offset, end := int64(a.offset), int64(a.offset)+rows
	if rows == 0 {
		offset, end = 0, 0 // whose buffers may not be there
	}
	foreign := unsafe.Slice(a.buffers, int(a.n_buffers))
	buffers := make([]*memory.Buffer, len(foreign))
	bytes := func(i int, n int64) {
		switch {
		case foreign[i] == nil && i == 0:
			// no validity bitmap: nothing is null
		case n == 0 || rows == 0 || foreign[i] == nil:
			buffers[i] = memory.NewBufferBytes([]byte{})
		default:
			buffers[i] = memory.NewBufferBytes(unsafe.Slice((*byte)(foreign[i]), n))
		}
	}
	bytes(0, (end+7)/8)
	switch t := t.(type) {
	case *arrow.ListType:
		bytes(1, 4*(end+1))
	case *arrow.LargeListType:
		bytes(1, 8*(end+1))
	case *arrow.StringType:
		bytes(1, 4*(end+1))
		bytes(2, lastOffset((*int32)(foreign[1]), rows, end))
	case *arrow.LargeStringType:
		bytes(1, 8*(end+1))
		bytes(2, lastOffset((*int64)(foreign[1]), rows, end))
	case arrow.FixedWidthDataType:
		bytes(1, (end*int64(t.BitWidth())+7)/8)
	}
	children := make([]arrow.ArrayData, int(a.n_children))
	for i, child := range unsafe.Slice(a.children, len(children)) {
		ofChild := int64(child.length)
		if _, isStruct := t.(*arrow.StructType); isStruct {
			ofChild = end
		}
		children[i] = view(child, childField(t, i).Type, ofChild)
	}
	nulls := int(a.null_count)
	switch {
	case foreign[0] == nil:
		nulls = 0
	case rows < int64(a.length):
		nulls = array.UnknownNullCount
	}
	return array.NewData(t, int(rows), buffers, children, nulls, int(offset))
}

// lastOffset is where the last value of a string array ends.
func lastOffset[T int32 | int64](offsets *T, rows, end int64) int64 {
	if rows == 0 {
		return 0
	}
	return int64(unsafe.Slice(offsets, end+1)[end])
}

// littleEndian views ids as the bytes that the document hash is defined over. All supported platforms are
// little-endian.
func littleEndian(ids []uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(ids))), 4*len(ids))
}
