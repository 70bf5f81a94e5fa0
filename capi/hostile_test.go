package capi

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// goodBatch is a batch with every column that there is, of which spoilt ones are made.
func goodBatch(t testing.TB, print string) *foreignBatch {
	r := newRand(21)
	rows := randomRows(r, 6, 6, 6)
	ones := [][]int64{{1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}}
	return newForeign(t, structOfColumns(t,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
		namedColumn{"labels", fromJSON(t, fixedOf(i64, 6), asJSON(t, rows))},
		namedColumn{"scores", scoresArray(allScores(r, rows, print, 4))},
		namedColumn{"attention_mask", maskArray(t, arrow.FixedWidthTypes.Boolean, ones)},
		namedColumn{"protected_mask", fromJSON(t, arrow.LargeListOf(i64), asJSON(t, [][]int64{{0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}}))},
		namedColumn{"key", fromJSON(t, arrow.BinaryTypes.String, `["a", "bc", ""]`)},
		namedColumn{"offset", fromJSON(t, i64, `[0, 5, 9]`)},
	))
}

func set[T any](values []byte, i int, v T) {
	*(*T)(unsafe.Pointer(&values[i*int(unsafe.Sizeof(v))])) = v
}

// Foreign structures are refused where they cannot be right, before anything follows them.
func TestHostileStructures(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	_, err := call(t, handle, 0, 0, goodBatch(t, print))
	require.NoError(t, err, "the batch that the cases spoil")

	array := func(path string, spoil func(*foreignArray)) func(*foreignBatch) {
		return func(b *foreignBatch) { a, _ := b.column(path); spoil(a) }
	}
	schema := func(path string, spoil func(*foreignSchema)) func(*foreignBatch) {
		return func(b *foreignBatch) { _, s := b.column(path); spoil(s) }
	}
	format := func(path, f string) func(*foreignBatch) {
		return schema(path, func(s *foreignSchema) { s.format = cString0(t, f) })
	}
	name := func(path, n string) func(*foreignBatch) {
		return schema(path, func(s *foreignSchema) { s.name = cString0(t, n) })
	}
	type hostile struct {
		name  string
		spoil func(*foreignBatch)
		parts []string
	}
	cases := []hostile{
		{"array released before", array("", func(a *foreignArray) { a.release = 0 }), []string{"ArrowArray", "released"}},
		{"schema released before", schema("", func(s *foreignSchema) { s.release = 0 }), []string{"ArrowSchema", "released"}},
		{"both released before", func(b *foreignBatch) { b.array.release, b.schema.release = 0, 0 }, []string{"released"}},
		{"column released before", array("input_ids", func(a *foreignArray) { a.release = 0 }), []string{"batch.input_ids", "released"}},
		{"values released before", array("scores.logp.[]", func(a *foreignArray) { a.release = 0 }), []string{"batch.scores.logp[]", "released"}},
		{"field released before", schema("scores.logp", func(s *foreignSchema) { s.release = 0 }), []string{"batch.scores.logp", "released"}},

		{"null children of an array", array("", func(a *foreignArray) { a.cArray.children = 0 }), []string{"children"}},
		{"null children of a list", array("input_ids", func(a *foreignArray) { a.cArray.children = 0 }), []string{"batch.input_ids", "children"}},
		{"null child of an array", array("", func(a *foreignArray) { a.links[1] = 0 }), []string{"batch.labels", "missing"}},
		{"null children of a schema", schema("", func(s *foreignSchema) { s.cSchema.children = 0 }), []string{"null pointer"}},
		{"null child of a schema", schema("", func(s *foreignSchema) { s.links[1] = 0 }), []string{"child 1 is a null pointer"}},
		{"null child of a list's schema", schema("input_ids", func(s *foreignSchema) { s.links[0] = 0 }), []string{"batch.input_ids", "null pointer"}},

		{"no children of a list", array("input_ids", func(a *foreignArray) { a.nChildren = 0 }), []string{"has 0 children"}},
		{"fewer children than fields", array("", func(a *foreignArray) { a.nChildren = 2 }), []string{"has 2 children", "7"}},
		{"more children than fields", array("", func(a *foreignArray) { a.nChildren = 1 << 60 }), []string{"children"}},
		{"negative children", array("", func(a *foreignArray) { a.nChildren = -1 }), []string{"has -1 children"}},
		{"negative fields", schema("", func(s *foreignSchema) { s.nChildren = -1 }), []string{"-1 children"}},
		{"too many fields", schema("", func(s *foreignSchema) { s.nChildren = math.MaxInt64 }), []string{"64"}},
		{"a list of two", schema("input_ids", func(s *foreignSchema) { s.nChildren = 2 }), []string{"has 2 children, but must have 1"}},
		{"a number with a child", schema("offset", func(s *foreignSchema) { s.nChildren = 1 }), []string{"has 1 children, but must have 0"}},

		{"no buffers", array("offset", func(a *foreignArray) { a.nBuffers = 0 }), []string{"has 0 buffers, but must have 2"}},
		{"negative buffers", array("input_ids", func(a *foreignArray) { a.nBuffers = -2 }), []string{"has -2 buffers"}},
		{"too many buffers", array("key", func(a *foreignArray) { a.nBuffers = 1 << 62 }), []string{"buffers, but must have 3"}},
		{"null buffers", array("key", func(a *foreignArray) { a.buffers = 0 }), []string{"batch.key", "buffers"}},
		{"null buffers of the batch", array("", func(a *foreignArray) { a.buffers = 0 }), []string{"batch", "buffers"}},
		{"null values", array("input_ids.[]", func(a *foreignArray) { a.pointers[1] = 0 }), []string{"batch.input_ids[]", "null pointer"}},
		{"null flags", array("attention_mask.[]", func(a *foreignArray) { a.pointers[1] = 0 }), []string{"null pointer"}},
		{"null offsets", array("input_ids", func(a *foreignArray) { a.pointers[1] = 0 }), []string{"null pointer"}},
		{"null text", array("key", func(a *foreignArray) { a.pointers[2] = 0 }), []string{"batch.key", "bytes are a null pointer"}},
		{"misaligned values", array("input_ids.[]", func(a *foreignArray) { a.pointers[1]++ }), []string{"aligned to 4", "copy"}},
		{"misaligned offsets", array("protected_mask", func(a *foreignArray) { a.pointers[1] += 4 }), []string{"aligned to 8"}},

		{"negative length", array("", func(a *foreignArray) { a.length = -1 }), []string{"length -1"}},
		{"negative length of values", array("input_ids.[]", func(a *foreignArray) { a.length = math.MinInt64 }), []string{"batch.input_ids[]", "length"}},
		{"negative offset", array("offset", func(a *foreignArray) { a.offset = -1 }), []string{"offset -1"}},
		{"huge length", array("", func(a *foreignArray) { a.length = math.MaxInt64 }), []string{"length 9223372036854775807"}},
		{"huge offset", array("", func(a *foreignArray) { a.offset = math.MaxInt64 }), []string{"offset 9223372036854775807"}},
		{"both huge", array("labels", func(a *foreignArray) { a.length, a.offset = math.MaxInt64, math.MaxInt64 }), []string{"batch.labels"}},
		{"more rows than its columns", array("", func(a *foreignArray) { a.length = 4 }), []string{"column input_ids has 3 rows, but 4 are needed"}},
		{"offset beyond its columns", array("", func(a *foreignArray) { a.offset = 1 }), []string{"column input_ids has 3 rows, but 4 are needed"}},
		{"short column", array("key", func(a *foreignArray) { a.length = 2 }), []string{"column key has 2 rows, but 3 are needed"}},
		{"short field of scores", array("scores.k", func(a *foreignArray) { a.length = 1 }), []string{"column k has 1 rows, but 3 are needed"}},
		{"fixed-size list with too few values", array("labels.[]", func(a *foreignArray) { a.length = 17 }), []string{"17 values", "3 lists of 6"}},
		{"fixed-size list with an offset beyond its values", array("labels", func(a *foreignArray) { a.offset = 1 }), []string{"18 values"}},
		{"huge fixed-size lists", format("labels", "+w:2147483647"), []string{"18 values", "3 lists of 2147483647"}},

		{"descending offsets", array("input_ids", func(a *foreignArray) { set(a.memory[1], 1, int32(13)) }), []string{"offset 12 at index 2 is below 13"}},
		{"negative first offset", array("input_ids", func(a *foreignArray) { set(a.memory[1], 0, int32(-6)) }), []string{"offset -6 at index 0"}},
		{"last offset beyond the values", array("input_ids", func(a *foreignArray) { set(a.memory[1], 3, int32(19)) }), []string{"last offset is 19", "18 values"}},
		{"large offsets that descend", array("protected_mask", func(a *foreignArray) { set(a.memory[1], 3, int64(math.MinInt64)) }), []string{"offset -9223372036854775808"}},
		{"large offset beyond the values", array("protected_mask", func(a *foreignArray) { set(a.memory[1], 3, int64(math.MaxInt64)) }), []string{"last offset"}},
		{"values shorter than the offsets say", array("scores.topk_ids.[]", func(a *foreignArray) { a.length = 3 }), []string{"batch.scores.topk_ids", "only 3 values"}},
		{"descending text", array("key", func(a *foreignArray) { set(a.memory[1], 1, int32(9)) }), []string{"batch.key", "below"}},
		{"negative text", array("key", func(a *foreignArray) { set(a.memory[1], 0, int32(-9)) }), []string{"batch.key", "offset -9"}},
		{"text of large strings without end", func(b *foreignBatch) {
			a, s := b.column("key")
			s.format = cString0(t, "U")
			offsets := cSlice[int64](t, 4)
			copy(offsets, []int64{0, 1, 2, math.MaxInt64})
			a.pointers[1] = uintptr(unsafe.Pointer(&offsets[0]))
		}, []string{"batch.key", "last offset"}},

		{"null_count below -1", array("input_ids", func(a *foreignArray) { a.nullCount = -2 }), []string{"null_count is -2"}},
		{"null_count above the length", array("offset", func(a *foreignArray) { a.nullCount = 4 }), []string{"null_count is 4 in an array of 3"}},
		{"null_count without a bitmap", array("offset", func(a *foreignArray) { a.nullCount, a.pointers[0] = 1, 0 }), []string{"validity bitmap"}},
		{"null_count of 0 over nulls in ids", array("input_ids.[]", func(a *foreignArray) { a.pointers[0] = someNull(t, 8) }), []string{"row 1: input_ids[2] is null"}},
		{"unknown null_count over nulls in ids", array("input_ids.[]", func(a *foreignArray) { a.nullCount, a.pointers[0] = -1, someNull(t, 8) }), []string{"row 1: input_ids[2] is null"}},
		{"null_count of 0 over a null row", array("input_ids", func(a *foreignArray) { a.pointers[0] = someNull(t, 1) }), []string{"row 1: input_ids is null"}},
		{"null_count of 0 over a null key", array("key", func(a *foreignArray) { a.pointers[0] = someNull(t, 2) }), []string{"row 2: the key column is null"}},
		{"null_count of 0 over null scores", array("scores", func(a *foreignArray) { a.pointers[0] = someNull(t, 0) }), []string{"row 0: scores is null"}},
		{"null_count of 0 over null rows of the batch", array("", func(a *foreignArray) { a.pointers[0] = someNull(t, 1) }), []string{"row 1", "null"}},
		{"unknown null_count over null rows of the batch", array("", func(a *foreignArray) { a.nullCount, a.pointers[0] = -1, someNull(t, 1) }), []string{"row 1", "null"}},

		{"dictionary of an array", array("offset", func(a *foreignArray) { a.dictionary = uintptr(unsafe.Pointer(a.cArray)) }), []string{"batch.offset", "dictionary"}},
		{"dictionary of a schema", schema("offset", func(s *foreignSchema) { s.dictionary = uintptr(unsafe.Pointer(s.cSchema)) }), []string{"dictionary_decode"}},

		{"no format", schema("offset", func(s *foreignSchema) { s.format = 0 }), []string{"format is empty"}},
		{"empty format", format("offset", ""), []string{"format is empty"}},
		{"format that does not end", schema("offset", func(s *foreignSchema) {
			endless := cSlice[byte](t, 4096)
			fillWith(endless, 'i')
			s.format = uintptr(unsafe.Pointer(&endless[0]))
		}), []string{"longer than 32 bytes"}},
		{"format that is no text", format("offset", "\xff\xfe"), []string{"Arrow format"}},
		{"format with more behind it", format("offset", "ll"), []string{`"ll" is not taken`}},
		{"list of no size", format("labels", "+w:"), []string{`"+w:"`}},
		{"list of size 0", format("labels", "+w:0"), []string{`"+w:0"`}},
		{"list of negative size", format("labels", "+w:-6"), []string{`"+w:-6"`}},
		{"list of a size beyond int32", format("labels", "+w:2147483648"), []string{`"+w:2147483648"`}},
		{"list of a size that is no number", format("labels", "+w:six"), []string{`"+w:six"`}},
		{"batch that is a list", func(b *foreignBatch) {
			a, s := b.column("input_ids")
			a.private, s.private = b.array.private, b.schema.private
			*b.array, *b.schema = *a, *s
		}, []string{"the batch is a list", "struct"}},
		{"ids that are a struct", format("input_ids", "+s"), []string{"batch.input_ids"}},
		{"scores that are a list", format("scores", "+l"), []string{"batch.scores"}},
		{"wider values than there are", format("input_ids.[]", "f"), []string{"input_ids holds float32"}},

		{"two columns of a name", name("key", "labels"), []string{`two columns named "labels"`}},
		{"two fields of a name", name("scores.k", "logp"), []string{"batch.scores", `two columns named "logp"`}},
		{"column without a name", schema("key", func(s *foreignSchema) { s.name = 0 }), []string{`column ""`}},
		{"name that does not end", schema("key", func(s *foreignSchema) {
			endless := cSlice[byte](t, 4096)
			fillWith(endless, 'n')
			s.name = uintptr(unsafe.Pointer(&endless[0]))
		}), []string{"longer than 256 bytes"}},
		{"name that is no text", name("key", "k\xffy"), []string{"column \"k\uFFFDy\""}},
		{"list child's name that does not end", schema("input_ids.[]", func(s *foreignSchema) {
			s.name = cString0(t, strings.Repeat("n", 300))
		}), []string{"longer than 256 bytes"}},
	}
	for _, f := range []string{"n", "e", "g", "z", "Z", "w:4", "d:9,2", "tdD", "tsu:UTC", "tin", "+m", "+r", "+vl", "+vL", "vu", "vz", "+us:0", "+ud:0", "+", "%s%n"} {
		cases = append(cases, hostile{"format " + f, format("offset", f), []string{"batch.offset", fmt.Sprintf("%q is not taken", f)}})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := goodBatch(t, print)
			c.spoil(b)
			_, err := call(t, handle, 0, 0, b)
			require.Error(t, err)
			kind := Input
			if strings.Contains(err.Error(), "scores is null") {
				kind = Scores
			}
			requireKind(t, err, kind, c.parts...)
			assert.True(t, utf8.ValidString(err.Error()))
		})
	}
	require.Nil(t, poison.Load())
}

// someNull is a validity bitmap in which only one value is null.
func someNull(t testing.TB, at int) uintptr {
	bits := cSlice[byte](t, 16)
	fillWith(bits, 0xFF)
	bits[at/8] &^= 1 << (at % 8)
	return uintptr(unsafe.Pointer(&bits[0]))
}

// What is odd but right is taken.
func TestUnusualStructures(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	want := values(t, columnOf(t, mustEdit(t, handle, 0, 0, goodBatch(t, print)).out, "input_ids"))
	everywhere := func(b *foreignBatch, do func(*foreignArray)) {
		var walk func(*foreignArray)
		walk = func(a *foreignArray) {
			do(a)
			for _, c := range a.children {
				walk(c)
			}
		}
		walk(b.array)
	}
	for name, change := range map[string]func(*foreignBatch){
		"null_count not computed": func(b *foreignBatch) { everywhere(b, func(a *foreignArray) { a.nullCount = -1 }) },
		"no bitmaps": func(b *foreignBatch) {
			everywhere(b, func(a *foreignArray) { a.nullCount, a.pointers[0] = 0, 0 })
		},
		"null_count not computed, no bitmaps": func(b *foreignBatch) {
			everywhere(b, func(a *foreignArray) { a.nullCount, a.pointers[0] = -1, 0 })
		},
		"bitmaps without a null": func(b *foreignBatch) {
			everywhere(b, func(a *foreignArray) {
				bits := cSlice[byte](t, 64)
				fillWith(bits, 0xFF)
				a.pointers[0] = uintptr(unsafe.Pointer(&bits[0]))
			})
		},
		"null_count above what is null": func(b *foreignBatch) {
			a, _ := b.column("input_ids.[]")
			bits := cSlice[byte](t, 64)
			fillWith(bits, 0xFF)
			a.nullCount, a.pointers[0] = 2, uintptr(unsafe.Pointer(&bits[0]))
		},
		"a null that no row holds": func(b *foreignBatch) {
			a, _ := b.column("input_ids.[]")
			a.length = 19
			a.nullCount, a.pointers[0] = 1, someNull(t, 18)
		},
		"columns longer than the batch": func(b *foreignBatch) {
			a, _ := b.column("scores")
			a.length = 3 // its fields were longer: the struct says how many count
			k, _ := b.column("scores.k")
			k.length = 9
		},
		"flags": func(b *foreignBatch) { b.schema.flags = -1 },
		"metadata that is none": func(b *foreignBatch) {
			b.schema.metadata = uintptr(unsafe.Pointer(&cSlice[byte](t, 1)[0]))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := goodBatch(t, print)
			change(b)
			assert.Equal(t, want, values(t, columnOf(t, mustEdit(t, handle, 0, 0, b).out, "input_ids")))
		})
	}
}

// Of a slice, what lies outside is not looked at, and so may be anything; what lies inside is.
func TestSlicesOfSpoiltStructures(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	second := func() *foreignBatch {
		b := goodBatch(t, print)
		b.array.offset, b.array.length = 1, 1
		return b
	}
	want := values(t, columnOf(t, mustEdit(t, handle, 0, 0, second()).out, "input_ids"))
	require.Len(t, want, 1)
	lists := []string{"input_ids", "attention_mask", "scores.logp", "scores.topk_pos", "scores.topk_ids", "scores.topk_logp", "key", "scores.prior"}

	b := second()
	for _, path := range lists {
		a, _ := b.column(path)
		set(a.memory[1], 0, int32(math.MinInt32))
		set(a.memory[1], 3, int32(math.MaxInt32))
	}
	assert.Equal(t, want, values(t, columnOf(t, mustEdit(t, handle, 0, 0, b).out, "input_ids")))

	for _, path := range lists {
		for at, offset := range map[int]int32{1: -1, 2: math.MaxInt32} {
			if at == 2 && (path == "key" || path == "scores.prior") {
				continue // how many bytes of text there are, nobody knows
			}
			b := second()
			a, _ := b.column(path)
			set(a.memory[1], at, offset)
			_, err := call(t, handle, 0, 0, b)
			requireKind(t, err, Input, "batch."+path, fmt.Sprint(offset))
		}
	}
}

func TestTooDeepAndTooWide(t *testing.T) {
	released := cSlice[int64](t, 1)
	deep := arrow.Field{Name: "x", Type: i32}
	for range 8 {
		deep = arrow.Field{Name: "x", Type: arrow.StructOf(deep)}
	}
	s := newForeignSchema(t, "", deep, &released[0])
	_, err := typeOf(schemaAt(addr(s.cSchema)), "batch", 0)
	requireKind(t, err, Input, "deeper than 4")

	// a schema that is its own child
	s = newForeignSchema(t, "", arrow.Field{Type: arrow.StructOf(arrow.Field{Name: "x", Type: i32})}, &released[0])
	s.links[0] = uintptr(unsafe.Pointer(s.cSchema))
	_, err = typeOf(schemaAt(addr(s.cSchema)), "batch", 0)
	requireKind(t, err, Input, "deeper than 4")

	fields := make([]arrow.Field, 65)
	for i := range fields {
		fields[i] = arrow.Field{Name: fmt.Sprint(i), Type: i32}
	}
	s = newForeignSchema(t, "", arrow.Field{Type: arrow.StructOf(fields...)}, &released[0])
	_, err = typeOf(schemaAt(addr(s.cSchema)), "batch", 0)
	requireKind(t, err, Input, "65 children")
}

// Whatever bytes stand in a schema, there is a type or an error.
func FuzzSchema(f *testing.F) {
	for _, format := range []string{"i", "+l", "+L", "+w:3", "+s", "u", "", "+w:99999999999999999999", "\xff", "+w:+3", "tsu:"} {
		f.Add([]byte(format), []byte("i"), []byte("item"), int64(1))
	}
	f.Fuzz(func(t *testing.T, format, element, name []byte, children int64) {
		released := cSlice[int64](t, 1)
		s := newForeignSchema(t, "", arrow.Field{Type: arrow.StructOf(arrow.Field{Name: "c", Type: arrow.ListOf(i32)})}, &released[0])
		column, values := s.children[0], s.children[0].children[0]
		column.format, values.format = cString0(t, string(format)), cString0(t, string(element))
		column.name, values.name = cString0(t, string(name)), cString0(t, string(name))
		if children > 1 {
			children = 1 // the memory behind the array of pointers is not part of what is tested
		}
		column.nChildren = children
		dt, err := typeOf(schemaAt(addr(s.cSchema)), "batch", 0)
		if err != nil {
			requireKind(t, err, Input)
			assert.True(t, utf8.ValidString(err.Error()))
			return
		}
		assert.True(t, utf8.ValidString(dt.String()))
	})
}

// Whatever stands in the numbers and pointers of a batch, Edit returns, releases it once, and holds nothing afterwards.
// Lengths are small or impossible: those in between cannot be told from the truth.
func FuzzEditHostileBatch(f *testing.F) {
	handle, print := fuzzEditor(f)
	f.Add([]byte{})
	for field := range byte(14) {
		for node := range byte(20) {
			f.Add([]byte{node, field, 0, node, field, 5})
			f.Add([]byte{node, field, 9})
		}
	}
	numbers := []int64{-1, 0, 1, 2, 3, 4, 5, 7, 18, 19, 64, 1<<40 + 1, 1 << 62, math.MaxInt64, math.MinInt64, -2}
	formats := []string{"i", "l", "s", "S", "C", "b", "f", "L", "+l", "+L", "+w:2", "+w:6", "+s", "u", "n", ""}
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) > 30 {
			return
		}
		before := GetUsage()
		b := goodBatch(t, print)
		var arrays []*foreignArray
		var schemas []*foreignSchema
		var walk func(a *foreignArray, s *foreignSchema)
		walk = func(a *foreignArray, s *foreignSchema) {
			arrays, schemas = append(arrays, a), append(schemas, s)
			for i := range a.children {
				walk(a.children[i], s.children[i])
			}
		}
		walk(b.array, b.schema)
		for ; len(ops) >= 3; ops = ops[3:] {
			at := int(ops[0]) % len(arrays)
			a, s, v := arrays[at], schemas[at], int(ops[2])%16
			switch ops[1] % 14 {
			case 0:
				a.length = numbers[v]
			case 1:
				a.offset = numbers[v]
			case 2:
				a.nullCount = numbers[v]
			case 3:
				a.nBuffers = numbers[v]
			case 4:
				a.nChildren = numbers[v]
			case 5:
				a.pointers[v%len(a.pointers)] = 0
			case 6:
				if p := &a.pointers[v%len(a.pointers)]; *p != 0 {
					*p += uintptr(v)
				}
			case 7:
				if n := len(a.links); n > 0 {
					a.links[v%n] = 0
				}
			case 8:
				s.nChildren = min(numbers[v], int64(len(s.children)))
			case 9:
				s.format = cString0(t, formats[v])
			case 10:
				if m := a.memory[len(a.memory)-1]; len(m) > 0 {
					m[int(ops[2])%len(m)] ^= 1 << (ops[0] % 8)
				}
			case 11:
				a.release = 0
			case 12:
				s.flags = int64(v)
			case 13:
				a.pointers[0] = someNull(t, v)
			}
		}
		e, err := callBare(t, handle, b)
		if what := poison.Load(); what != nil {
			t.Fatal(*what)
		}
		if err != nil {
			var known *Error
			require.ErrorAs(t, err, &known)
		}
		e()
		assert.Equal(t, before, GetUsage())
	})
}

// fuzzEditor is an editor that stays open: a fuzz worker has no end at which to close it.
func fuzzEditor(f *testing.F) (uint64, string) {
	h := openBundled(f)
	return openPolicy(f, h, eager), fingerprint(f, h)
}

// callBare is call without its checks of what came out; release gives that back.
func callBare(t testing.TB, handle uint64, b *foreignBatch) (release func(), err error) {
	arrays, schemas, totals := cSlice[cArray](t, 2), cSlice[cSchema](t, 2), cSlice[counts](t, 1)
	held := b.array.release != 0
	err = Edit(handle, 0, 0, 0, EditArgs{
		Batch: addr(b.array.cArray), Schema: addr(b.schema.cSchema), Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
		Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0]),
	})
	assert.Equal(t, held, *b.arrayReleases == 1)
	assert.EqualValues(t, 1, *b.schemaReleases)
	return func() {
		for i := range arrays {
			releaseBoth(addr(&arrays[i]), addr(&schemas[i]))
		}
	}, err
}
