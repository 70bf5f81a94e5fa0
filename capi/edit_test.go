package capi

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/cdata"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
)

// Every container and element type comes back as it went in, and edited as package editor edits it.
func TestEditEveryTokenType(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	for container, of := range containers {
		for _, element := range elements {
			for _, slicing := range []string{"whole", "batch sliced", "columns sliced"} {
				t.Run(fmt.Sprintf("%s<%s> %s", container, element, slicing), func(t *testing.T) {
					r := newRand(7)
					lengths := []int{9, 70, 0, 1, 33, 64, 5}
					if container == "fixed_size_list" {
						lengths = slices.Repeat([]int{23}, 7)
					}
					rows := randomRows(r, lengths...)
					scores := allScores(r, rows, print, 5)
					unscore(&scores[1], lengths[1]-1)
					unscore(&scores[5], 0)
					dt := of(element, 23)
					ids, column := fromJSON(t, dt, asJSON(t, rows)), scoresArray(scores)
					from, to := 0, len(rows)
					if slicing == "columns sliced" {
						from, to = 1, 6
						ids, column = array.NewSlice(ids, 1, 6), array.NewSlice(column, 1, 6)
					}
					var batch arrow.Array = structOfColumns(t, namedColumn{"input_ids", ids}, namedColumn{"scores", column})
					if slicing == "batch sliced" {
						from, to = 2, 6
						batch = array.NewSlice(batch, 2, 6)
					}
					e := mustEdit(t, handle, 11, 3, newForeign(t, batch))
					want, log, total := reference{rows: rows[from:to], scores: scores[from:to]}.edit(t, eager, 11, 3)
					out := columnOf(t, e.out, "input_ids")
					assert.Equal(t, want, values(t, out))
					assert.Equal(t, log, e.log)
					if from <= 1 && to > 1 {
						total.OverlongRows = 1 // row 1, whose last token is unscored
					}
					assert.Equal(t, total, e.counts)
					assert.Positive(t, e.counts.Changes)
					assert.Equal(t, dt.String(), out.DataType().String())
					assert.Equal(t, 1, e.out.NumField())
				})
			}
		}
	}
}

// unscore takes away what is known of a position.
func unscore(s *rowScores, pos int) {
	s.logp[pos] = float32(math.NaN())
	at := slices.Index(s.pos, int32(pos))
	if at < 0 {
		return
	}
	k := int(s.k)
	s.pos = slices.Delete(s.pos, at, at+1)
	s.ids = slices.Delete(s.ids, at*k, (at+1)*k)
	s.topLogp = slices.Delete(s.topLogp, at*k, (at+1)*k)
}

// The element's name and nullability are the caller's own.
func TestEditKeepsElementField(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(1)
	rows := randomRows(r, 4, 4)
	for _, field := range []arrow.Field{{Name: "element", Type: i32}, {Name: "", Type: i64, Nullable: true}} {
		for _, dt := range []arrow.DataType{arrow.ListOfField(field), arrow.LargeListOfField(field), arrow.FixedSizeListOfField(4, field)} {
			batch := structOfColumns(t, namedColumn{"input_ids", fromJSON(t, dt, asJSON(t, rows))},
				namedColumn{"scores", scoresArray(allScores(r, rows, print, 4))})
			e := mustEdit(t, handle, 0, 0, newForeign(t, batch))
			assert.True(t, arrow.TypeEqual(dt, columnOf(t, e.out, "input_ids").DataType(), arrow.CheckMetadata()), "%s", dt)
			got := columnOf(t, e.out, "input_ids").DataType().(arrow.ListLikeType).ElemField()
			assert.Equal(t, field.Name, got.Name)
			assert.Equal(t, field.Nullable, got.Nullable)
		}
	}
}

func TestEditWithoutRows(t *testing.T) {
	trackUsage(t)
	handle, _ := bundledEditor(t, eager)
	for _, of := range containers {
		for _, element := range elements {
			dt := of(element, 3)
			batch := structOfColumns(t, namedColumn{"input_ids", fromJSON(t, dt, `[]`)}, namedColumn{"scores", scoresArray(nil)},
				namedColumn{"labels", fromJSON(t, of(i64, 3), `[]`)})
			f := newForeign(t, batch)
			// Nothing of an array without elements may be looked at.
			for _, path := range []string{"input_ids", "input_ids.[]", "scores.logp", "scores.logp.[]", "labels"} {
				a, _ := f.column(path)
				for i := range a.pointers {
					a.pointers[i] = 1
				}
			}
			e := mustEdit(t, handle, 0, 0, f)
			assert.Equal(t, counts{}, e.counts)
			assert.Empty(t, e.log)
			assert.Equal(t, 0, e.out.Len())
			assert.Equal(t, dt.String(), columnOf(t, e.out, "input_ids").DataType().String())
			assert.Equal(t, of(i64, 3).String(), columnOf(t, e.out, "labels").DataType().String())
		}
	}
}

// Rows without tokens come back empty, also where all are, whose values then have no memory at all.
func TestEditEmptyRows(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	for _, of := range []func(arrow.DataType, int) arrow.DataType{listOf, largeOf} {
		rows := [][]uint32{{}, {}, {}}
		batch := structOfColumns(t, namedColumn{"input_ids", fromJSON(t, of(i64, 0), asJSON(t, rows))},
			namedColumn{"scores", scoresArray(allScores(newRand(1), rows, print, 4))})
		for _, spoil := range []func(a *foreignArray){
			func(*foreignArray) {},
			func(a *foreignArray) { a.pointers[1] = 0 },
			func(a *foreignArray) { a.pointers[1] = 3; a.offset = 5 },
			func(a *foreignArray) { a.nullCount = -1 },
		} {
			f := newForeign(t, batch)
			for _, path := range []string{"input_ids.[]", "scores.logp.[]", "scores.topk_pos.[]"} {
				a, _ := f.column(path)
				spoil(a)
			}
			e := mustEdit(t, handle, 0, 0, f)
			assert.Equal(t, [][]int64{{}, {}, {}}, values(t, columnOf(t, e.out, "input_ids")))
			assert.Equal(t, counts{Rows: 3, EmptyRows: 3}, e.counts)
		}
	}
}

// Padding is nobody's: rows padded left, right or in the middle are edited as the rows without it.
func TestEditLeavesPaddingOut(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(3)
	rows := randomRows(r, 12, 7, 0, 3)
	scores := allScores(r, rows, print, 4)
	plain := mustEdit(t, handle, 5, 1, newForeign(t, structOfColumns(t,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), asJSON(t, rows))}, namedColumn{"scores", scoresArray(scores)})))
	want := values(t, columnOf(t, plain.out, "input_ids"))

	const width, padding = 14, -1
	maskTypes := []arrow.DataType{arrow.FixedWidthTypes.Boolean, arrow.PrimitiveTypes.Int8, arrow.PrimitiveTypes.Uint8,
		arrow.PrimitiveTypes.Int16, i32, i64}
	for _, maskType := range maskTypes {
		for _, side := range []string{"left", "right", "both", "mixed"} {
			t.Run(fmt.Sprintf("%s %s", maskType, side), func(t *testing.T) {
				padded, mask, wantPadded := make([][]int64, len(rows)), make([][]int64, len(rows)), make([][]int64, len(rows))
				for i, row := range rows {
					// at holds where each real token stands
					at := make([]int, len(row))
					for j := range row {
						switch side {
						case "left":
							at[j] = width - len(row) + j
						case "right":
							at[j] = j
						case "both":
							at[j] = (width-len(row))/2 + j
						case "mixed":
							at[j] = j + (width-len(row))*(j*2/max(len(row), 1))/2
						}
					}
					padded[i], mask[i] = slices.Repeat([]int64{padding}, width), make([]int64, width)
					wantPadded[i] = slices.Clone(padded[i])
					for j, a := range at {
						padded[i][a], mask[i][a], wantPadded[i][a] = int64(row[j]), 1, want[i][j]
					}
				}
				e := mustEdit(t, handle, 5, 1, newForeign(t, structOfColumns(t,
					namedColumn{"input_ids", fromJSON(t, fixedOf(i64, width), asJSON(t, padded))},
					namedColumn{"scores", scoresArray(scores)},
					namedColumn{"attention_mask", maskArray(t, maskType, mask)})))
				assert.Equal(t, wantPadded, values(t, columnOf(t, e.out, "input_ids")))
				assert.Equal(t, plain.log, e.log, "positions count real tokens")
				assert.Equal(t, plain.counts, e.counts)
			})
		}
	}
}

// maskArray makes a list column of flags; true is 1 (and -1, where the type has it).
func maskArray(t testing.TB, element arrow.DataType, rows [][]int64) arrow.Array {
	if element.ID() == arrow.BOOL {
		flags := make([][]bool, len(rows))
		for i, row := range rows {
			for _, v := range row {
				flags[i] = append(flags[i], v != 0)
			}
		}
		return fromJSON(t, arrow.ListOf(element), asJSON(t, flags))
	}
	text := make([][]int64, len(rows))
	for i, row := range rows {
		text[i] = slices.Clone(row)
		for j := range text[i] {
			if element.ID() != arrow.UINT8 && j%2 == 1 {
				text[i][j] = -text[i][j]
			}
		}
	}
	return fromJSON(t, arrow.ListOf(element), asJSON(t, text))
}

func TestEditProtects(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(4)
	rows := randomRows(r, 40, 0, 31)
	scores := allScores(r, rows, print, 4)
	first := func(i int) bool { return i%3 == 0 }
	second := func(i int) bool { return i%5 == 0 }
	mask := func(of func(int) bool) arrow.Array {
		m := make([][]int64, len(rows))
		for i, row := range rows {
			for j := range row {
				m[i] = append(m[i], map[bool]int64{true: 1}[of(j)])
			}
			if m[i] == nil {
				m[i] = []int64{}
			}
		}
		return maskArray(t, arrow.PrimitiveTypes.Uint8, m)
	}
	e := mustEdit(t, handle, 0, 9, newForeign(t, structOfColumns(t,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
		namedColumn{"scores", scoresArray(scores)},
		namedColumn{"protected_mask", mask(first)},
		namedColumn{"special_tokens_mask", mask(second)})))
	want, log, total := reference{rows: rows, scores: scores,
		protected: func(_, i int) bool { return first(i) || second(i) }}.edit(t, eager, 0, 9)
	assert.Equal(t, want, values(t, columnOf(t, e.out, "input_ids")))
	assert.Equal(t, log, e.log)
	assert.Equal(t, total, e.counts)
	assert.Positive(t, e.counts.Protected)
}

// Labels follow the ids; where they are -100 the token stays. Their type and the ids' need not be the same.
func TestEditLabels(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(5)
	rows := randomRows(r, 18, 18)
	scores := allScores(r, rows, print, 4)
	context := func(i int) bool { return i < 6 }
	for _, padded := range []bool{false, true} {
		for _, labelType := range []arrow.DataType{arrow.ListOf(i64), arrow.LargeListOf(i32), fixedOf(i64, 20)} {
			ids, labels, mask := make([][]int64, 2), make([][]int64, 2), make([][]int64, 2)
			for i, row := range rows {
				for j, id := range row {
					ids[i], labels[i], mask[i] = append(ids[i], int64(id)), append(labels[i], int64(id)), append(mask[i], 1)
					if context(j) {
						labels[i][j] = -100
					}
				}
				// a label of padding is not looked at
				ids[i], labels[i], mask[i] = append([]int64{0, 0}, ids[i]...), append([]int64{-100, 77}, labels[i]...), append([]int64{0, 0}, mask[i]...)
				if !padded && labelType.ID() != arrow.FIXED_SIZE_LIST {
					ids[i], labels[i], mask[i] = ids[i][2:], labels[i][2:], mask[i][2:]
				}
			}
			columns := []namedColumn{
				{"input_ids", fromJSON(t, arrow.ListOf(arrow.PrimitiveTypes.Uint16), asJSON(t, ids))},
				{"labels", fromJSON(t, labelType, asJSON(t, labels))},
				{"scores", scoresArray(scores)},
				{"attention_mask", maskArray(t, arrow.PrimitiveTypes.Int8, mask)},
			}
			e := mustEdit(t, handle, 1, 1, newForeign(t, structOfColumns(t, columns...)))
			_, log, total := reference{rows: rows, scores: scores, protected: func(_, i int) bool { return context(i) }}.edit(t, eager, 1, 1)
			assert.Equal(t, log, e.log)
			assert.Equal(t, total, e.counts)
			require.Positive(t, total.Changes)
			shift := len(ids[0]) - len(rows[0])
			for _, c := range log {
				ids[c.row][int(c.position)+shift] = c.new
				labels[c.row][int(c.position)+shift] = c.new
			}
			assert.Equal(t, ids, values(t, columnOf(t, e.out, "input_ids")))
			assert.Equal(t, labels, values(t, columnOf(t, e.out, "labels")))
			assert.Equal(t, labelType.String(), columnOf(t, e.out, "labels").DataType().String())
		}
	}
}

// The draws hang on the key and the position in the keyed document, not on where a row stands or how it is cut.
func TestEditKeyAndOffset(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(6)
	rows := randomRows(r, 20, 20, 20)
	scores := allScores(r, rows, print, 4)
	text := func(i int) string { return []string{"a", "", "schlüssel"}[i] }
	number := func(i int) int64 { return []int64{-1, 0, 1 << 40}[i] }
	offset := func(i int) uint64 { return []uint64{0, 1000, maxOffset}[i] }
	for name, key := range map[string]struct {
		column arrow.Array
		hash   func(int) editor.Hash128
	}{
		"string":       {fromJSON(t, arrow.BinaryTypes.String, `["a", "", "schlüssel"]`), func(i int) editor.Hash128 { return editor.HashBytes([]byte(text(i))) }},
		"large_string": {fromJSON(t, arrow.BinaryTypes.LargeString, `["a", "", "schlüssel"]`), func(i int) editor.Hash128 { return editor.HashBytes([]byte(text(i))) }},
		"int64":        {fromJSON(t, i64, `[-1, 0, 1099511627776]`), func(i int) editor.Hash128 { return editor.HashInt64(number(i)) }},
	} {
		t.Run(name, func(t *testing.T) {
			batch := structOfColumns(t,
				namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
				namedColumn{"scores", scoresArray(scores)},
				namedColumn{"key", key.column},
				namedColumn{"offset", fromJSON(t, i64, fmt.Sprintf(`[0, 1000, %d]`, int64(maxOffset)))})
			e := mustEdit(t, handle, 8, 2, newForeign(t, batch))
			want, log, total := reference{rows: rows, scores: scores, key: key.hash, offset: offset}.edit(t, eager, 8, 2)
			assert.Equal(t, want, values(t, columnOf(t, e.out, "input_ids")))
			assert.Equal(t, log, e.log)
			assert.Equal(t, total, e.counts)
			assert.Equal(t, int64(2), e.log[len(e.log)-1].row)
			assert.Positive(t, e.log[len(e.log)-1].position)

			sliced := mustEdit(t, handle, 8, 2, newForeign(t, array.NewSlice(batch, 1, 3)))
			assert.Equal(t, want[1:], values(t, columnOf(t, sliced.out, "input_ids")))
		})
	}
}

// Any batch size gives the same edits.
func TestEditDoesNotDependOnTheBatch(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(8)
	rows := randomRows(r, 30, 1, 0, 17, 256, 4, 8, 0, 90)
	scores := allScores(r, rows, print, 6)
	want, _, _ := reference{rows: rows, scores: scores}.edit(t, eager, 3, 3)
	for size := 1; size <= len(rows); size += 3 {
		var got [][]int64
		for from := 0; from < len(rows); from += size {
			to := min(from+size, len(rows))
			e := mustEdit(t, handle, 3, 3, newForeign(t, structOfColumns(t,
				namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), asJSON(t, rows[from:to]))},
				namedColumn{"scores", scoresArray(scores[from:to])})))
			got = append(got, values(t, columnOf(t, e.out, "input_ids"))...)
		}
		assert.Equal(t, want, got, "batches of %d", size)
	}
}

// Scores written by others may come with their fields in another order, in large or fixed-size lists, sliced.
func TestEditScoresOfOtherShape(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(9)
	rows := randomRows(r, 16, 16)
	scores := allScores(r, rows, print, 4)
	want, _, _ := reference{rows: rows, scores: scores}.edit(t, eager, 0, 0)
	s := scoresArray(scores).(*array.Struct)
	f32 := arrow.PrimitiveTypes.Float32
	large := func(i int, e arrow.DataType) arrow.Array {
		text, err := s.Field(i).MarshalJSON()
		require.NoError(t, err)
		return fromJSON(t, arrow.LargeListOf(e), string(text))
	}
	logp, err := s.Field(0).MarshalJSON()
	require.NoError(t, err)
	other := structOfColumns(t,
		namedColumn{"extra", fromJSON(t, i64, `[1, 2]`)},
		namedColumn{"prior", fromJSON(t, arrow.BinaryTypes.LargeString, asJSON(t, []string{print, print}))},
		namedColumn{"ids_hash", s.Field(5)}, namedColumn{"k", s.Field(4)},
		namedColumn{"topk_logp", large(3, f32)}, namedColumn{"topk_ids", large(2, i32)}, namedColumn{"topk_pos", large(1, i32)},
		namedColumn{"logp", fromJSON(t, fixedOf(f32, 16), string(logp))})
	e := mustEdit(t, handle, 0, 0, newForeign(t, structOfColumns(t,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))}, namedColumn{"scores", other})))
	assert.Equal(t, want, values(t, columnOf(t, e.out, "input_ids")))
}

// What comes in is viewed, not copied: arrays point to the producer's memory, and uint32 ids are hashed and read there.
// What goes out is new memory, counted until it is released.
func TestEditViewsInputsAndAllocatesOutputs(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(10)
	rows := randomRows(r, 100, 200)
	scores := allScores(r, rows, print, 4)
	batch := func() *foreignBatch {
		return newForeign(t, structOfColumns(t,
			namedColumn{"input_ids", fromJSON(t, arrow.ListOf(arrow.PrimitiveTypes.Uint32), asJSON(t, rows))},
			namedColumn{"scores", scoresArray(scores)}))
	}
	f := batch()
	b, err := importBatch(addr(f.array.cArray), addr(f.schema.cSchema))
	require.NoError(t, err)
	ids, err := b.tokenColumn()
	require.NoError(t, err)
	own, _ := f.column("input_ids.[]")
	tokens := ids.values.(*array.Uint32).Uint32Values()
	assert.Equal(t, own.pointers[1], uintptr(unsafe.Pointer(&tokens[0])))
	var d document
	require.NoError(t, read(&d, 1, tokens[100:], nil, vocabulary))
	assert.Equal(t, own.pointers[1]+400, uintptr(unsafe.Pointer(&d.ids[0])))
	s, err := newScoresColumn(b.columns["scores"])
	require.NoError(t, err)
	var view editor.Scores
	s.row(1, &view)
	logp, _ := f.column("scores.logp.[]")
	assert.Equal(t, logp.pointers[1]+400, uintptr(unsafe.Pointer(&view.LogP[0])))
	assert.EqualValues(t, 0, *f.arrayReleases, "importing does not release")

	before := GetUsage()
	f = batch()
	arrays, schemas, totals := cSlice[cArray](t, 2), cSlice[cSchema](t, 2), cSlice[counts](t, 1)
	require.NoError(t, Edit(handle, 0, 0, 0, EditArgs{
		Batch: addr(f.array.cArray), Schema: addr(f.schema.cSchema), Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
		Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0]),
	}))
	held := GetUsage()
	assert.GreaterOrEqual(t, held.AllocatedBytes-before.AllocatedBytes, int64(4*300))
	assert.Equal(t, int64(2*(3+7)), held.Exports-before.Exports, "batch, ids and values; log and its six columns; arrays and schemas")
	for i := range arrays {
		cdata.ReleaseCArrowArray(cdata.ArrayFromPtr(uintptr(unsafe.Pointer(&arrays[i]))))
		cdata.ReleaseCArrowSchema(cdata.SchemaFromPtr(uintptr(unsafe.Pointer(&schemas[i]))))
	}
	assert.Equal(t, before, GetUsage())
}

// A consumer may move a child out, release its parent, and release the child later.
func TestExportedChildrenOutliveTheirParent(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(11)
	rows := randomRows(r, 50)
	f := newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
		namedColumn{"scores", scoresArray(allScores(r, rows, print, 4))}))
	arrays, schemas, totals := cSlice[cArray](t, 2), cSlice[cSchema](t, 2), cSlice[counts](t, 1)
	require.NoError(t, Edit(handle, 0, 0, 0, EditArgs{
		Batch: addr(f.array.cArray), Schema: addr(f.schema.cSchema), Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
		Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0]),
	}))
	before := GetUsage()
	moved := cSlice[cArray](t, 1)
	child := childAt(&arrays[1], 0)
	moved[0], child.release = *child, 0
	for i := range arrays {
		releaseBoth(addr(&arrays[i]), addr(&schemas[i]))
	}
	after := GetUsage()
	assert.Equal(t, int64(1), after.Exports)
	assert.Less(t, after.AllocatedBytes, before.AllocatedBytes)
	assert.Positive(t, after.AllocatedBytes)
	releaseBoth(addr(&moved[0]), 0)
}

func childAt(a *cArray, i int) *cArray {
	child := unsafe.Slice(arrayAt(addr(a)).children, a.nChildren)[i]
	return (*cArray)(unsafe.Pointer(child))
}

// Structures that arrow-go exports are as good as any.
func TestEditWithArrowGoAsProducer(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(12)
	rows := randomRows(r, 13, 0, 40)
	scores := allScores(r, rows, print, 4)
	batch := structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.LargeListOf(i32), asJSON(t, rows))},
		namedColumn{"scores", scoresArray(scores)})
	// arrow-go's arrays lie on Go's heap here; copied, they may cross.
	inC := memory.NewCheckedAllocator(cHeap)
	defer inC.AssertSize(t, 0)
	held := concatenateIn(t, inC, batch)
	arrays, schemas, totals := cSlice[cArray](t, 3), cSlice[cSchema](t, 3), cSlice[counts](t, 1)
	cdata.ExportArrowArray(held, cdata.ArrayFromPtr(uintptr(unsafe.Pointer(&arrays[2]))), cdata.SchemaFromPtr(uintptr(unsafe.Pointer(&schemas[2]))))
	held.Release()
	require.NoError(t, Edit(handle, 0, 0, 0, EditArgs{
		Batch: addr(&arrays[2]), Schema: addr(&schemas[2]), Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
		Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0]),
	}))
	out := importOut(t, &arrays[0], &schemas[0])
	importOut(t, &arrays[1], &schemas[1])
	want, _, _ := reference{rows: rows, scores: scores}.edit(t, eager, 0, 0)
	assert.Equal(t, want, values(t, columnOf(t, out, "input_ids")))
}

func concatenateIn(t testing.TB, mem memory.Allocator, a arrow.Array) arrow.Array {
	out, err := array.Concatenate([]arrow.Array{a, array.NewSlice(a, 0, 0)}, mem)
	require.NoError(t, err)
	return out
}

// Labels that keep the originals are the ids in the first generation only. -100 is context in each.
func TestEditOriginalLabels(t *testing.T) {
	trackUsage(t)
	original := eager
	original.Labels = editor.LabelsOriginal
	handle, print := bundledEditor(t, original)
	r := newRand(6)
	rows := randomRows(r, 40)
	scores := allScores(r, rows, print, 4)
	before := [][]int64{make([]int64, 40)}
	for j := range before[0] {
		before[0][j] = int64(rows[0][j]+1) % vocabulary
	}
	before[0][7] = -100
	batch := func(labels [][]int64) *foreignBatch {
		return newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), asJSON(t, rows))},
			namedColumn{"labels", fromJSON(t, arrow.ListOf(i64), asJSON(t, labels))}, namedColumn{"scores", scoresArray(scores)}))
	}
	_, err := callIn(t, handle, editor.Epoch{}, batch(before))
	requireKind(t, err, Input, "row 0", "labels[0]")
	e, err := callIn(t, handle, editor.Epoch{Generation: 1}, batch(before))
	require.NoError(t, err)
	assert.Equal(t, before, values(t, columnOf(t, e.out, "labels")))
	want, log, _ := reference{rows: rows, scores: scores, protected: func(_, i int) bool { return i == 7 }}.editIn(t, eager, editor.Epoch{Generation: 1})
	assert.Equal(t, want, values(t, columnOf(t, e.out, "input_ids")))
	assert.Equal(t, log, e.log)
	require.NotEmpty(t, log)
}

// The seed, the epoch, the generation and the position decide; nothing else does, and each of them does.
func TestEditSeedEpochAndGeneration(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(13)
	rows := randomRows(r, 200)
	scores := allScores(r, rows, print, 4)
	seen := map[string]bool{}
	for _, ep := range []editor.Epoch{
		{}, {Seed: 1}, {Epoch: 1}, {Generation: 1}, {Seed: math.MaxUint64, Epoch: math.MaxUint32, Generation: math.MaxUint16},
	} {
		var first string
		for range 2 {
			e, err := callIn(t, handle, ep, newForeign(t, structOfColumns(t,
				namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))}, namedColumn{"scores", scoresArray(scores)})))
			require.NoError(t, err)
			want, _, _ := reference{rows: rows, scores: scores}.editIn(t, eager, ep)
			assert.Equal(t, want, values(t, columnOf(t, e.out, "input_ids")))
			got := fmt.Sprint(values(t, columnOf(t, e.out, "input_ids")))
			if first != "" {
				assert.Equal(t, first, got)
			}
			first = got
		}
		assert.False(t, seen[first])
		seen[first] = true
	}
}
