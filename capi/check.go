package capi

// #include "export.h"
import "C"

import (
	"maps"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
)

// Foreign structures are believed only after they were looked through: their pointers and counts would otherwise be
// followed as they are. What can be checked is checked here (formats, children, buffers, lengths, offsets); the one thing that
// cannot is whether a pointer leads to as much memory as it says.

const (
	maxDepth   = 4  // batch > scores > list > values
	maxColumns = 64 // far above what any entry point knows
	maxFormat  = 32 // bytes of a format string
	maxName    = 256
)

// simpleTypes are the formats without children that may be passed in.
var simpleTypes = map[string]arrow.DataType{
	"b": arrow.FixedWidthTypes.Boolean,
	"c": arrow.PrimitiveTypes.Int8, "C": arrow.PrimitiveTypes.Uint8,
	"s": arrow.PrimitiveTypes.Int16, "S": arrow.PrimitiveTypes.Uint16,
	"i": arrow.PrimitiveTypes.Int32, "I": arrow.PrimitiveTypes.Uint32,
	"l": arrow.PrimitiveTypes.Int64, "L": arrow.PrimitiveTypes.Uint64,
	"f": arrow.PrimitiveTypes.Float32,
	"u": arrow.BinaryTypes.String, "U": arrow.BinaryTypes.LargeString,
}

// cBytes are the bytes of a C string in its own memory, none of a null pointer; false where they are more than limit.
func cBytes(s *C.char, limit int) ([]byte, bool) {
	if s == nil {
		return nil, true
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(s)), limit+1)
	for i := range bytes {
		if bytes[i] == 0 {
			return bytes[:i], true
		}
	}
	return nil, false
}

// cString is a copy of a C string. What is not UTF-8 is replaced: names end up in messages, and those become Python strings.
func cString(s *C.char, limit int) (string, bool) {
	bytes, ok := cBytes(s, limit)
	return strings.ToValidUTF8(string(bytes), "\uFFFD"), ok
}

// columnPath says where a column stands. It becomes text only where there is something to say about it.
type columnPath struct {
	above *columnPath
	name  string // "" for a list's values
}

func (p *columnPath) String() string {
	switch {
	case p.above == nil:
		return p.name
	case p.name == "":
		return p.above.String() + "[]"
	}
	return p.above.String() + "." + p.name
}

// knownTypes are types that typeOf made before, by what appendSchema makes of their schemas. A training run has few of them, and
// making one takes longer than all other checks of a batch.
var knownTypes atomic.Pointer[map[string]arrow.DataType]

const maxKnown = 64

// batchType is typeOf for a batch.
func batchType(s *C.struct_ArrowSchema) (arrow.DataType, error) {
	var room [1024]byte
	schema, ok := appendSchema(room[:0], s, 0)
	if !ok {
		return typeOf(s, "batch", 0) // which says what is wrong
	}
	known := knownTypes.Load()
	if known != nil {
		if t, ok := (*known)[string(schema)]; ok {
			return t, nil
		}
	}
	t, err := typeOf(s, "batch", 0)
	if err == nil && (known == nil || len(*known) < maxKnown) {
		more := map[string]arrow.DataType{string(schema): t}
		if known != nil {
			maps.Copy(more, *known)
		}
		knownTypes.Store(&more) // another thread's may be lost, and is made again
	}
	return t, err
}

// appendSchema appends all of a schema that its type depends on; false where that cannot be read.
func appendSchema(to []byte, s *C.struct_ArrowSchema, depth int) ([]byte, bool) {
	if s == nil || s.release == nil || s.dictionary != nil || depth > maxDepth || s.n_children < 0 || s.n_children > maxColumns ||
		s.n_children > 0 && s.children == nil {
		return nil, false
	}
	format, short := cBytes(s.format, maxFormat)
	name, alsoShort := cBytes(s.name, maxName)
	if !short || !alsoShort {
		return nil, false
	}
	to = append(append(to, format...), 0)
	to = append(append(to, name...), 0)
	to = append(to, byte(s.n_children), byte(s.flags&C.ARROW_FLAG_NULLABLE))
	if s.n_children > 0 {
		for _, child := range unsafe.Slice(s.children, int(s.n_children)) {
			var ok bool
			if to, ok = appendSchema(to, child, depth+1); !ok {
				return nil, false
			}
		}
	}
	return to, true
}

// typeOf turns a foreign schema into a type. It reads formats, names and children only; metadata is left alone.
func typeOf(s *C.struct_ArrowSchema, path string, depth int) (arrow.DataType, error) {
	bad := func(format string, args ...any) error { return fail(Input, path+": "+format, args...) }
	if s == nil || s.release == nil {
		return nil, bad("the ArrowSchema is missing or was released before")
	}
	if depth > maxDepth {
		return nil, bad("types are nested deeper than %d", maxDepth)
	}
	if s.dictionary != nil {
		return nil, bad("dictionary-encoded columns are not taken; decode it first (pyarrow: column.dictionary_decode())")
	}
	format, ok := cString(s.format, maxFormat)
	if !ok || format == "" {
		return nil, bad("the ArrowSchema's format is empty or longer than %d bytes", maxFormat)
	}
	wantChildren := func(n int64) error {
		if int64(s.n_children) != n {
			return bad("format %q has %d children, but must have %d", format, int64(s.n_children), n)
		}
		if n > 0 && s.children == nil {
			return bad("format %q has a null pointer for its children", format)
		}
		return nil
	}
	if t, ok := simpleTypes[format]; ok {
		return t, wantChildren(0)
	}
	if format == "+s" {
		if s.n_children < 0 || s.n_children > maxColumns {
			return nil, bad("a struct has %d children, but may have 0 to %d", int64(s.n_children), maxColumns)
		}
		if err := wantChildren(int64(s.n_children)); err != nil {
			return nil, err
		}
		fields := make([]arrow.Field, int(s.n_children))
		seen := make(map[string]bool, len(fields))
		for i, child := range unsafe.Slice(s.children, int(s.n_children)) {
			if child == nil {
				return nil, bad("child %d is a null pointer", i)
			}
			name, ok := cString(child.name, maxName)
			if !ok {
				return nil, bad("child %d has a name longer than %d bytes", i, maxName)
			}
			if seen[name] {
				return nil, bad("it has two columns named %q", name)
			}
			seen[name] = true
			t, err := typeOf(child, path+"."+name, depth+1)
			if err != nil {
				return nil, err
			}
			fields[i] = arrow.Field{Name: name, Type: t, Nullable: child.flags&C.ARROW_FLAG_NULLABLE != 0}
		}
		return arrow.StructOf(fields...), nil
	}
	size, fixed := strings.CutPrefix(format, "+w:")
	if format != "+l" && format != "+L" && !fixed {
		return nil, bad("Arrow format %q is not taken; token ids are list, large_list or fixed_size_list of int32, int64, uint16 or uint32", format)
	}
	if err := wantChildren(1); err != nil {
		return nil, err
	}
	child := *s.children
	if child == nil {
		return nil, bad("its child is a null pointer")
	}
	element, err := typeOf(child, path+"[]", depth+1)
	if err != nil {
		return nil, err
	}
	// Nothing here needs other lists. So every offset that is followed belongs to a column as long as the batch: only
	// lists hold arrays without elements, whose buffers may point anywhere.
	if _, number := element.(arrow.FixedWidthDataType); !number {
		return nil, bad("it is a list of %s, but lists hold numbers or booleans here", element)
	}
	name, ok := cString(child.name, maxName)
	if !ok {
		return nil, bad("its child has a name longer than %d bytes", maxName)
	}
	field := arrow.Field{Name: name, Type: element, Nullable: child.flags&C.ARROW_FLAG_NULLABLE != 0}
	switch {
	case format == "+l":
		return arrow.ListOfField(field), nil
	case format == "+L":
		return arrow.LargeListOfField(field), nil
	}
	n, err := strconv.ParseInt(size, 10, 32)
	if err != nil || n < 1 {
		return nil, bad("format %q: a fixed size is 1 to %d", format, math.MaxInt32)
	}
	return arrow.FixedSizeListOfField(int32(n), field), nil
}

// checkArray makes sure that an array has what its type needs, and that its rows first to end-1 are what they may be. A slice
// of a struct has its whole columns, of which no more is looked at than the slice: a row alone must not cost what the table does.
func checkArray(a *C.struct_ArrowArray, t arrow.DataType, path columnPath, first, end int64) error {
	bad := func(format string, args ...any) error { return fail(Input, path.String()+": "+format, args...) }
	if a == nil || a.release == nil {
		return bad("the ArrowArray is missing or was released before")
	}
	length, offset, nulls := int64(a.length), int64(a.offset), int64(a.null_count)
	// The bound keeps (offset + length) x element size inside int64.
	const limit = int64(1) << 40
	if length < 0 || offset < 0 || length > limit || offset > limit {
		return bad("length %d and offset %d must be 0 to %d", length, offset, limit)
	}
	if nulls < -1 || nulls > length {
		return bad("null_count is %d in an array of %d", nulls, length)
	}
	if a.dictionary != nil {
		return bad("it has a dictionary, but its type has none")
	}
	wantBuffers, children := 2, 0
	var width int64 // bytes of one element of the second buffer; 0: bits
	switch t := t.(type) {
	case *arrow.StructType:
		wantBuffers, children = 1, t.NumFields()
	case *arrow.FixedSizeListType:
		wantBuffers, children = 1, 1
	case *arrow.ListType:
		children, width = 1, 4
	case *arrow.LargeListType:
		children, width = 1, 8
	case *arrow.StringType:
		wantBuffers, width = 3, 4
	case *arrow.LargeStringType:
		wantBuffers, width = 3, 8
	case arrow.FixedWidthDataType:
		width = int64(t.BitWidth() / 8)
	default:
		return bad("type %s is not taken", t)
	}
	if int64(a.n_buffers) != int64(wantBuffers) || a.buffers == nil {
		return bad("%s has %d buffers, but must have %d", t, int64(a.n_buffers), wantBuffers)
	}
	buffers := unsafe.Slice(a.buffers, wantBuffers)
	if nulls > 0 && buffers[0] == nil {
		return bad("null_count is %d, but there is no validity bitmap", nulls)
	}
	if wantBuffers > 1 && buffers[1] == nil && length > 0 {
		return bad("its values are a null pointer")
	}
	if wantBuffers > 1 && width > 1 && length > 0 && uintptr(buffers[1])%uintptr(width) != 0 {
		return bad("its values are not aligned to %d bytes; copy the column first", width)
	}
	if int64(a.n_children) != int64(children) || (children > 0 && a.children == nil) {
		return bad("%s has %d children, but must have %d", t, int64(a.n_children), children)
	}
	childArrays := unsafe.Slice(a.children, children)
	first, end = offset+first, offset+end // in its buffers, and in the columns of a struct
	for i, child := range childArrays {
		field, at := childField(t, i), columnPath{above: &path}
		var from, to int64 // of lists' values, which are numbers, no one needs a look
		if _, isStruct := t.(*arrow.StructType); isStruct {
			at.name, from, to = field.Name, first, end
			if child != nil && child.release != nil && int64(child.length) < end {
				return bad("column %s has %d rows, but %d are needed", field.Name, int64(child.length), end)
			}
		}
		if err := checkArray(child, field.Type, at, from, to); err != nil {
			return err
		}
	}
	if length == 0 {
		return nil // whose buffers are not there
	}
	switch t := t.(type) {
	case *arrow.FixedSizeListType:
		if n := int64(childArrays[0].length); n/int64(t.Len()) < offset+length {
			return bad("it has %d values, too few for %d lists of %d", n, offset+length, t.Len())
		}
	case *arrow.ListType:
		return checkOffsets((*int32)(buffers[1]), first, end, int64(childArrays[0].length), bad)
	case *arrow.LargeListType:
		return checkOffsets((*int64)(buffers[1]), first, end, int64(childArrays[0].length), bad)
	case *arrow.StringType:
		return checkText((*int32)(buffers[1]), first, end, buffers[2], bad)
	case *arrow.LargeStringType:
		return checkText((*int64)(buffers[1]), first, end, buffers[2], bad)
	}
	return nil
}

// childField is the field of the i-th child of a struct, or of a list's values.
func childField(t arrow.DataType, i int) arrow.Field {
	if list, ok := t.(arrow.ListLikeType); ok {
		return list.ElemField()
	}
	return t.(*arrow.StructType).Field(i)
}

// checkText is checkOffsets for strings, whose bytes have no length of their own.
func checkText[T int32 | int64](offsets *T, first, end int64, bytes unsafe.Pointer, bad func(string, ...any) error) error {
	const limit = int64(1) << 40
	if err := checkOffsets(offsets, first, end, limit, bad); err != nil {
		return err
	}
	if bytes == nil && unsafe.Slice(offsets, end+1)[end] > 0 {
		return bad("its bytes are a null pointer")
	}
	return nil
}

// checkOffsets wants the offsets first to end to ascend within [0, limit].
func checkOffsets[T int32 | int64](offsets *T, first, end, limit int64, bad func(string, ...any) error) error {
	previous := T(0)
	for i, o := range unsafe.Slice(offsets, end+1)[first:] {
		if o < previous {
			return bad("offset %d at index %d is below %d, the one before it", o, i, previous)
		}
		previous = o
	}
	if int64(previous) > limit {
		return bad("the last offset is %d, but there are only %d values", previous, limit)
	}
	return nil
}
