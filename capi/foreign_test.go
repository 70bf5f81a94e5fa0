package capi

import (
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/apache/arrow/go/v17/arrow/memory/mallocator"
	"github.com/stretchr/testify/require"

	"toedit/capi/internal/foreign"
)

// A producer of Arrow structures that is not toedit and not arrow-go: everything lies on the C heap, every release is
// counted, and every field can be spoilt.

// cArray and cSchema mirror struct ArrowArray and struct ArrowSchema.
type cArray struct {
	length, nullCount, offset, nBuffers, nChildren  int64
	buffers, children, dictionary, release, private uintptr
}

type cSchema struct {
	format, name, metadata                 uintptr
	flags, nChildren                       int64
	children, dictionary, release, private uintptr
}

var cHeap = mallocator.NewMallocator()

// slack is how much zeroed memory follows each buffer, so that a spoilt length (within reason) reads no stranger's memory.
const slack = 1 << 12

// cSlice allocates n zeroed values on the C heap for the time of a test.
func cSlice[T any](t testing.TB, n int) []T {
	var zero T
	b := cHeap.Allocate(n*int(unsafe.Sizeof(zero)) + slack)
	t.Cleanup(func() { cHeap.Free(b) })
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

func cString0(t testing.TB, s string) uintptr {
	b := cSlice[byte](t, len(s)+1)
	copy(b, s)
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}

func addr[T any](p *T) Address { return Address(uintptr(unsafe.Pointer(p))) }

// foreignArray is an ArrowArray with what hangs from it.
type foreignArray struct {
	*cArray
	pointers []uintptr // buffers
	memory   [][]byte  // of the buffers; nil where there is none
	children []*foreignArray
	links    []uintptr // children
}

type foreignSchema struct {
	*cSchema
	children []*foreignSchema
	links    []uintptr
}

// foreignBatch is a record batch as a stranger exports it.
type foreignBatch struct {
	array  *foreignArray
	schema *foreignSchema
	// how often each was released, children (by mistake) included
	arrayReleases, schemaReleases *int64
}

func newForeign(t testing.TB, a arrow.Array) *foreignBatch {
	counters := cSlice[int64](t, 2)
	b := &foreignBatch{arrayReleases: &counters[0], schemaReleases: &counters[1]}
	b.array = newForeignArray(t, a.Data(), b.arrayReleases)
	b.schema = newForeignSchema(t, "", arrow.Field{Type: a.DataType()}, b.schemaReleases)
	return b
}

func newForeignArray(t testing.TB, d arrow.ArrayData, released *int64) *foreignArray {
	f := &foreignArray{cArray: &cSlice[cArray](t, 1)[0]}
	f.length, f.nullCount, f.offset = int64(d.Len()), int64(d.NullN()), int64(d.Offset())
	f.release, f.private = uintptr(foreign.ReleaseArray), uintptr(unsafe.Pointer(released))
	f.pointers = cSlice[uintptr](t, len(d.Buffers()))
	for i, b := range d.Buffers() {
		var m []byte
		if b != nil {
			m = cSlice[byte](t, b.Len())
			copy(m, b.Bytes())
			f.pointers[i] = uintptr(unsafe.Pointer(unsafe.SliceData(m)))
		}
		f.memory = append(f.memory, m)
	}
	f.nBuffers, f.buffers = int64(len(f.pointers)), uintptr(unsafe.Pointer(unsafe.SliceData(f.pointers)))
	f.links = cSlice[uintptr](t, len(d.Children()))
	for i, child := range d.Children() {
		c := newForeignArray(t, child, released)
		f.children = append(f.children, c)
		f.links[i] = uintptr(unsafe.Pointer(c.cArray))
	}
	if f.nChildren = int64(len(f.children)); f.nChildren > 0 {
		f.cArray.children = uintptr(unsafe.Pointer(unsafe.SliceData(f.links)))
	}
	return f
}

func newForeignSchema(t testing.TB, name string, field arrow.Field, released *int64) *foreignSchema {
	f := &foreignSchema{cSchema: &cSlice[cSchema](t, 1)[0]}
	f.format, f.name = cString0(t, formatOf(field.Type)), cString0(t, name)
	if field.Nullable {
		f.flags = 2
	}
	f.release, f.private = uintptr(foreign.ReleaseSchema), uintptr(unsafe.Pointer(released))
	var fields []arrow.Field
	if nested, ok := field.Type.(arrow.NestedType); ok {
		fields = nested.Fields()
	}
	f.links = cSlice[uintptr](t, len(fields))
	for i, child := range fields {
		c := newForeignSchema(t, child.Name, child, released)
		f.children = append(f.children, c)
		f.links[i] = uintptr(unsafe.Pointer(c.cSchema))
	}
	if f.nChildren = int64(len(f.children)); f.nChildren > 0 {
		f.cSchema.children = uintptr(unsafe.Pointer(unsafe.SliceData(f.links)))
	}
	return f
}

// formatOf is the format strings of the Arrow C data interface's specification.
func formatOf(t arrow.DataType) string {
	simple := map[arrow.Type]string{
		arrow.NULL: "n", arrow.BOOL: "b", arrow.INT8: "c", arrow.UINT8: "C", arrow.INT16: "s", arrow.UINT16: "S",
		arrow.INT32: "i", arrow.UINT32: "I", arrow.INT64: "l", arrow.UINT64: "L", arrow.FLOAT16: "e", arrow.FLOAT32: "f",
		arrow.FLOAT64: "g", arrow.STRING: "u", arrow.LARGE_STRING: "U", arrow.BINARY: "z", arrow.LIST: "+l",
		arrow.LARGE_LIST: "+L", arrow.STRUCT: "+s",
	}
	if list, ok := t.(*arrow.FixedSizeListType); ok {
		return "+w:" + strconv.Itoa(int(list.Len()))
	}
	return simple[t.ID()]
}

// column finds an array by its path in the batch: "scores.logp.[]" is the values of the list logp in the struct scores.
func (b *foreignBatch) column(path string) (*foreignArray, *foreignSchema) {
	a, s := b.array, b.schema
	if path == "" {
		return a, s
	}
	for _, name := range strings.Split(path, ".") {
		at := -1
		for i := range s.children {
			if name == "[]" || nameOf(s.links[i]) == name {
				at = i
			}
		}
		if at < 0 {
			panic("no column " + path)
		}
		a, s = a.children[at], s.children[at]
	}
	return a, s
}

func nameOf(schema uintptr) string {
	text, _ := cString(schemaAt(Address(schema)).name, 256)
	return text
}

// clobber overwrites all that the batch pointed to, as a producer may once it was told to release.
func (b *foreignBatch) clobber() { b.array.clobber() }

func (f *foreignArray) clobber() {
	for _, m := range f.memory {
		for i := range m {
			m[i] = 0xA5
		}
	}
	for _, c := range f.children {
		c.clobber()
	}
}

// structOfColumns makes a record batch as a struct array.
func structOfColumns(t testing.TB, columns ...namedColumn) *array.Struct {
	var arrays []arrow.Array
	var fields []arrow.Field
	for _, c := range columns {
		arrays = append(arrays, c.array)
		fields = append(fields, arrow.Field{Name: c.name, Type: c.array.DataType(), Nullable: true})
	}
	rows := 0
	var data []arrow.ArrayData
	for i, a := range arrays {
		if i == 0 {
			rows = a.Len()
		}
		require.Equal(t, rows, a.Len())
		data = append(data, a.Data())
	}
	d := array.NewData(arrow.StructOf(fields...), rows, []*memory.Buffer{nil}, data, 0, 0)
	defer d.Release()
	s := array.NewStructData(d)
	t.Cleanup(s.Release) // it holds the columns, which may be exports of ours
	return s
}

type namedColumn struct {
	name  string
	array arrow.Array
}
