package capi

// #include <string.h>
// #include "export.h"
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/bitutil"
)

// What goes out is built as a tree of columns whose memory is C's, and exported by export.c. arrow-go can export too, but
// its release callbacks are Go code (they hang in forked children), and its crossing costs several times as much.

// buffer is memory on the C heap on its way out.
type buffer struct{ pointer unsafe.Pointer }

// newBuffer allocates n elements, which are not zeroed.
func newBuffer[T any](n int) (buffer, []T) {
	var zero T
	p := C.toedit_buffer_new(C.int64_t(n) * C.int64_t(unsafe.Sizeof(zero)))
	if p == nil {
		panic(fmt.Sprintf("no memory for %d elements of %d bytes", n, unsafe.Sizeof(zero)))
	}
	return buffer{p}, unsafe.Slice((*T)(p), n)
}

func (b buffer) free() { C.toedit_buffer_free(b.pointer) }

// column is an array with its name and type. It owns its buffers until it is exported or freed.
type column struct {
	name     string
	dataType arrow.DataType
	required bool // its field says that it has no nulls
	length   int
	nulls    int
	buffers  []buffer // as the Arrow format orders them; the first is the validity bitmap
	children []*column
}

// valueColumn is a column of fixed-width values.
func valueColumn(name string, t arrow.DataType, length int, values buffer) *column {
	return &column{name: name, dataType: t, length: length, buffers: []buffer{{}, values}}
}

// copiedColumn is a column with a copy of values.
func copiedColumn[T any](name string, t arrow.DataType, values []T) *column {
	c, dst := newColumn[T](name, t, len(values))
	copy(dst, values)
	return c
}

// newColumn is a column whose values are to be written.
func newColumn[T any](name string, t arrow.DataType, n int) (*column, []T) {
	b, values := newBuffer[T](n)
	return valueColumn(name, t, n, b), values
}

// listColumnOf is a list column of type t; offsets are zero for a fixed-size list.
func listColumnOf(name string, t arrow.ListLikeType, length int, offsets buffer, values *column) *column {
	c := &column{name: name, dataType: t, length: length, buffers: []buffer{{}}, children: []*column{values}}
	if t.ID() != arrow.FIXED_SIZE_LIST {
		c.buffers = append(c.buffers, offsets)
	}
	values.name, values.required = t.ElemField().Name, !t.ElemField().Nullable
	return c
}

// anyStruct stands for the type of a struct that goes out, which its columns make up.
var anyStruct = arrow.StructOf()

// structOf is a struct array of columns.
func structOf(length int, columns ...*column) *column {
	return &column{dataType: anyStruct, length: length, buffers: []buffer{{}}, children: columns}
}

// markNulls makes nulls of some values.
func (c *column) markNulls(null func(i int) bool) *column {
	valid, bits := newBuffer[byte](int(bitutil.BytesForBits(int64(c.length))))
	clear(bits)
	for i := range c.length {
		if null(i) {
			c.nulls++
		} else {
			bitutil.SetBit(bits, i)
		}
	}
	if c.nulls == 0 {
		valid.free()
		return c
	}
	c.buffers[0] = valid
	return c
}

// flagsColumn is a column of booleans.
func flagsColumn(name string, length int, set func(i int) bool) *column {
	b, bits := newBuffer[byte](int(bitutil.BytesForBits(int64(length))))
	clear(bits)
	for i := range length {
		if set(i) {
			bitutil.SetBit(bits, i)
		}
	}
	return valueColumn(name, arrow.FixedWidthTypes.Boolean, length, b)
}

// textColumn is a column of strings or bytes, null where they are nil. Together they have at most math.MaxInt32 bytes.
func textColumn(name string, t arrow.DataType, text [][]byte) *column {
	offsets, ends := newBuffer[int32](len(text) + 1)
	b, bytes := newBuffer[byte](total(text))
	at := 0
	for i, value := range text {
		ends[i] = int32(at)
		at += copy(bytes[at:], value)
	}
	ends[len(text)] = int32(at)
	c := &column{name: name, dataType: t, length: len(text), buffers: []buffer{{}, offsets, b}}
	return c.markNulls(func(i int) bool { return text[i] == nil })
}

// free gives up a column that is not exported.
func (c *column) free() {
	for _, b := range c.buffers {
		b.free()
	}
	for _, child := range c.children {
		child.free()
	}
}

// outTypes are the formats that only go out.
var outTypes = map[string]arrow.DataType{"g": arrow.PrimitiveTypes.Float64, "z": arrow.BinaryTypes.Binary}

// simpleFormats are the formats of types without children.
var simpleFormats = func() map[arrow.Type]string {
	formats := make(map[arrow.Type]string)
	for _, types := range []map[string]arrow.DataType{simpleTypes, outTypes} {
		for f, t := range types {
			formats[t.ID()] = f
		}
	}
	return formats
}()

// format is the type's format string in the Arrow C data interface.
func format(t arrow.DataType) string {
	switch t := t.(type) {
	case *arrow.StructType:
		return "+s"
	case *arrow.ListType:
		return "+l"
	case *arrow.LargeListType:
		return "+L"
	case *arrow.FixedSizeListType:
		return fmt.Sprintf("+w:%d", t.Len())
	}
	f, ok := simpleFormats[t.ID()]
	if !ok {
		panic("no format for " + t.String())
	}
	return f
}

// export fills two empty C structures. The column's memory is theirs afterwards, or free.
func export(c *column, array, schema Address) error {
	if err := c.fill(arrayAt(array), schemaAt(schema)); err != nil {
		releaseBoth(array, schema)
		return err
	}
	return nil
}

func (c *column) fill(a *C.struct_ArrowArray, s *C.struct_ArrowSchema) error {
	var b [3]unsafe.Pointer
	for i := range c.buffers {
		b[i] = c.buffers[i].pointer
	}
	n := C.int64_t(len(c.children))
	if C.toedit_array_fill(a, C.int64_t(c.length), C.int64_t(c.nulls), C.int64_t(len(c.buffers)), b[0], b[1], b[2], n) != 0 {
		c.free()
		return fail(Internal, "no memory for an array of %d rows", c.length)
	}
	text := format(c.dataType) + "\x00" + c.name + "\x00"
	formatText := (*C.char)(unsafe.Pointer(unsafe.StringData(text)))
	nameText := (*C.char)(unsafe.Pointer(unsafe.StringData(text[len(text)-len(c.name)-1:])))
	flags := C.int64_t(C.ARROW_FLAG_NULLABLE)
	if c.required {
		flags = 0
	}
	failed := C.toedit_schema_fill(s, formatText, nameText, flags, n) != 0
	for i, child := range c.children {
		if failed {
			child.free()
			continue
		}
		children, schemas := unsafe.Slice(a.children, n), unsafe.Slice(s.children, n)
		failed = child.fill(children[i], schemas[i]) != nil
	}
	if failed {
		return fail(Internal, "no memory for the schema of an array of %d rows", c.length)
	}
	return nil
}

// zeroOut clears what an entry point will fill, before anything else can fail.
func zeroOut(array, schema Address) error {
	if array != 0 {
		C.memset(unsafe.Pointer(arrayAt(array)), 0, C.sizeof_struct_ArrowArray)
	}
	if schema != 0 {
		C.memset(unsafe.Pointer(schemaAt(schema)), 0, C.sizeof_struct_ArrowSchema)
	}
	if array == 0 || schema == 0 {
		return fail(Input, "the ArrowArray or ArrowSchema for the result is a null pointer")
	}
	return nil
}

// releaseBoth releases an array and its schema, if they hold anything. Null pointers are fine.
func releaseBoth(array, schema Address) {
	C.toedit_array_release(arrayAt(array))
	C.toedit_schema_release(schemaAt(schema))
}

// ReleaseArrow releases an array and its schema that an entry point filled. Null pointers and released structures are
// fine.
func ReleaseArrow(array, schema Address) error {
	releaseBoth(array, schema)
	return nil
}

// Usage is what the library holds.
type Usage struct {
	AllocatedBytes, Exports, Handles int64
}

// GetUsage counts what was not released or closed.
func GetUsage() Usage {
	return Usage{AllocatedBytes: int64(C.toedit_buffer_bytes()), Exports: int64(C.toedit_exports()), Handles: int64(handles.count())}
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
