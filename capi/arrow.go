package capi

// #include <string.h>
// #include "guard.h"
import "C"

import (
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/cdata"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/apache/arrow/go/v17/arrow/memory/mallocator"
)

// heap is where everything that is exported lives: C's heap, so that it needs no Go runtime to stay where it is.
var heap = mallocator.NewMallocator()

// Address is that of a C structure, as an integer (Python and handles know no pointers).
type Address = uint64

func schemaAt(a Address) *C.struct_ArrowSchema {
	return (*C.struct_ArrowSchema)(C.toedit_pointer(C.uint64_t(a)))
}
func arrayAt(a Address) *C.struct_ArrowArray {
	return (*C.struct_ArrowArray)(C.toedit_pointer(C.uint64_t(a)))
}

// importBatch takes over a struct array: its columns by name, valid until release is called. An empty batch has no
// columns, only types: the buffers of empty arrays may point anywhere. release is never nil; what was not taken over is
// left to the entry point's releaseIn.
func importBatch(arrayAddr, schemaAddr Address) (batch *arrowBatch, release func(), err error) {
	release = func() {}
	if arrayAddr == 0 || schemaAddr == 0 {
		return nil, release, fail(Input, "the batch's ArrowArray or ArrowSchema is a null pointer")
	}
	dt, err := typeOf(schemaAt(schemaAddr), "batch", 0)
	if err != nil {
		return nil, release, err
	}
	t, ok := dt.(*arrow.StructType)
	if !ok {
		return nil, release, fail(Input, "the batch is a %s, but must be a struct array (a record batch)", dt)
	}
	foreign := arrayAt(arrayAddr)
	if err := checkArray(foreign, t, "batch"); err != nil {
		return nil, release, err
	}
	if foreign.null_count > 0 {
		return nil, release, fail(Input, "the batch has null rows; a record batch has none")
	}
	batch = &arrowBatch{rows: int(foreign.length), types: map[string]arrow.DataType{}, columns: map[string]arrow.Array{}}
	for _, f := range t.Fields() {
		if _, twice := batch.types[f.Name]; twice {
			return nil, release, fail(Input, "the batch has two columns named %q", f.Name)
		}
		batch.types[f.Name] = f.Type
	}
	if batch.rows == 0 {
		return batch, release, nil
	}
	imported, err := cdata.ImportCArrayWithType(cdata.ArrayFromPtr(uintptr(arrayAddr)), t)
	if err != nil {
		return nil, release, fail(Input, "the batch cannot be imported: %v", err)
	}
	columns := imported.(*array.Struct)
	for i, f := range t.Fields() {
		batch.columns[f.Name] = columns.Field(i)
	}
	return batch, imported.Release, nil
}

// arrowBatch is an imported record batch.
type arrowBatch struct {
	rows    int
	types   map[string]arrow.DataType
	columns map[string]arrow.Array // empty where rows is 0
}

// only refuses columns that the entry point does not know: a misspelt one would otherwise be ignored in silence.
func (b *arrowBatch) only(names ...string) error {
	known := map[string]bool{}
	for _, n := range names {
		known[n] = true
	}
	for n := range b.types {
		if !known[n] {
			return fail(Input, "column %q is not known here; pass only %q", n, names)
		}
	}
	return nil
}

// export fills two empty C structures with an array and guards them against forked children. It takes over the caller's
// reference to arr.
func export(arr arrow.Array, arrayAddr, schemaAddr Address) error {
	defer arr.Release()
	cdata.ExportArrowArray(arr, cdata.ArrayFromPtr(uintptr(arrayAddr)), cdata.SchemaFromPtr(uintptr(schemaAddr)))
	a, s := arrayAt(arrayAddr), schemaAt(schemaAddr)
	if C.toedit_guard_array(a) != 0 || C.toedit_guard_schema(s) != 0 {
		releaseOut(arrayAddr, schemaAddr)
		return fail(Internal, "no memory left")
	}
	return nil
}

// zeroOut clears what an entry point will fill, before anything else can fail.
func zeroOut(arrayAddr, schemaAddr Address) error {
	if arrayAddr == 0 || schemaAddr == 0 {
		return fail(Input, "the ArrowArray or ArrowSchema for the result is a null pointer")
	}
	C.memset(unsafe.Pointer(arrayAt(arrayAddr)), 0, C.sizeof_struct_ArrowArray)
	C.memset(unsafe.Pointer(schemaAt(schemaAddr)), 0, C.sizeof_struct_ArrowSchema)
	return nil
}

// releaseIn releases structures that were passed in. What arrow-go has taken over is marked released by then.
func releaseIn(arrayAddr, schemaAddr Address) {
	if arrayAddr != 0 {
		cdata.ReleaseCArrowArray(cdata.ArrayFromPtr(uintptr(arrayAddr)))
	}
	if schemaAddr != 0 {
		cdata.ReleaseCArrowSchema(cdata.SchemaFromPtr(uintptr(schemaAddr)))
	}
}

func releaseOut(arrayAddr, schemaAddr Address) {
	cdata.ReleaseCArrowArray(cdata.ArrayFromPtr(uintptr(arrayAddr)))
	cdata.ReleaseCArrowSchema(cdata.SchemaFromPtr(uintptr(schemaAddr)))
}

// newBuffer allocates n zeroed elements on the C heap.
func newBuffer[T any](n int) (*memory.Buffer, []T) {
	var zero T
	b := memory.NewResizableBuffer(heap)
	b.Resize(n * int(unsafe.Sizeof(zero)))
	if n == 0 {
		return b, nil
	}
	return b, unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b.Bytes()))), n)
}

// newValues makes an array of a fixed-width type. It takes over the buffers; valid may be nil.
func newValues(t arrow.DataType, n int, values, valid *memory.Buffer, nulls int) arrow.ArrayData {
	d := array.NewData(t, n, []*memory.Buffer{valid, values}, nil, nulls, 0)
	values.Release()
	if valid != nil {
		valid.Release()
	}
	return d
}

// newList makes a list array. It takes over the offsets (nil for a fixed-size list) and the child.
func newList(t arrow.DataType, n int, offsets *memory.Buffer, child arrow.ArrayData) arrow.ArrayData {
	buffers := []*memory.Buffer{nil}
	if offsets != nil {
		buffers = append(buffers, offsets)
		defer offsets.Release()
	}
	defer child.Release()
	return array.NewData(t, n, buffers, []arrow.ArrayData{child}, 0, 0)
}

// newStruct makes a struct array of columns. It takes over the columns.
func newStruct(n int, names []string, columns []arrow.ArrayData) arrow.Array {
	fields := make([]arrow.Field, len(columns))
	for i, c := range columns {
		fields[i] = arrow.Field{Name: names[i], Type: c.DataType(), Nullable: true}
		defer c.Release()
	}
	d := array.NewData(arrow.StructOf(fields...), n, []*memory.Buffer{nil}, columns, 0, 0)
	defer d.Release()
	return array.NewStructData(d)
}

// littleEndian views ids as the bytes that the document hash is defined over. All supported platforms are
// little-endian.
func littleEndian(ids []uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(ids))), 4*len(ids))
}

// Usage is what the library holds.
type Usage struct {
	AllocatedBytes, Exports, Handles int64
}

// GetUsage counts what was not released or closed.
func GetUsage() Usage {
	return Usage{AllocatedBytes: heap.AllocatedBytes(), Exports: int64(C.toedit_guarded()), Handles: int64(handles.count())}
}

// AddCounters adds n values to counters in memory that several processes share.
func AddCounters(counters, values Address, n int) error {
	return guarded(func() error {
		if counters == 0 || values == 0 || n < 0 {
			return fail(Input, "AddCounters got a null pointer or a negative count")
		}
		C.toedit_add_counters((*C.int64_t)(C.toedit_pointer(C.uint64_t(counters))), (*C.int64_t)(C.toedit_pointer(C.uint64_t(values))), C.int64_t(n))
		return nil
	})
}
