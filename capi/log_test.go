package capi

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
	"toedit/editor/prior"
	"toedit/editor/scorer/scorertest"
)

// everyAction is a policy that draws, drops and masks.
var everyAction = func() editor.Policy {
	p := eager
	p.Bands = []editor.Band{{Low: 0.9, High: 1, Closed: true}, {Low: 0.2, High: 0.5, Action: editor.Drop}, {Low: 0.5, High: 0.7, Action: editor.MaskLoss}}
	return p
}()

// callLog runs an entry point that reads a batch and a log, with an out-parameter full of garbage, and checks what must hold
// whatever comes back.
func callLog(t testing.TB, f func(LogArgs) error, batch, log *foreignBatch) (*array.Struct, error) {
	t.Helper()
	arrays, schemas := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	fill(arrays)
	fill(schemas)
	err := f(LogArgs{
		Batch: addr(batch.array.cArray), Schema: addr(batch.schema.cSchema),
		Log: addr(log.array.cArray), LogSchema: addr(log.schema.cSchema),
		Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
	})
	for _, b := range []*foreignBatch{batch, log} {
		require.Equal(t, []int64{1, 1}, []int64{*b.arrayReleases, *b.schemaReleases})
		b.clobber()
	}
	if err != nil {
		require.Equal(t, cArray{}, arrays[0])
		require.Equal(t, cSchema{}, schemas[0])
		return nil, err
	}
	return importOut(t, &arrays[0], &schemas[0]), nil
}

func apply(labels string) func(LogArgs) error {
	return func(a LogArgs) error { return ApplyLog(labels, a) }
}

func complete(priorHandle uint64, generation int) func(LogArgs) error {
	return func(a LogArgs) error { return CompleteLog(priorHandle, generation, a) }
}

// uint64s is an array of what JSON's numbers do not hold.
func uint64s(values ...uint64) arrow.Array {
	b := array.NewUint64Builder(memory.DefaultAllocator)
	b.AppendValues(values, nil)
	return b.NewArray()
}

// editedBatch is a batch, what Edit made of it, and the whole log of that.
type editedBatch struct {
	columns []namedColumn // input_ids, attention_mask, labels, key, offset
	out     *array.Struct
	log     *array.Struct
}

// withColumn is a batch with a column replaced.
func withColumn(t testing.TB, s *array.Struct, name string, column arrow.Array) *array.Struct {
	var columns []namedColumn
	for i, f := range s.DataType().(*arrow.StructType).Fields() {
		c := s.Field(i)
		if f.Name == name {
			c = column
		}
		columns = append(columns, namedColumn{f.Name, c})
	}
	return structOfColumns(t, columns...)
}

// needed are the columns of a log that decide.
func needed(t testing.TB, log *array.Struct) *array.Struct {
	var columns []namedColumn
	for _, name := range []string{"row", "position", "old", "new", "key", "generation", "action", "context", "ids_hash", "edited_hash", "edits_hash"} {
		columns = append(columns, namedColumn{name, columnOf(t, log, name)})
	}
	return structOfColumns(t, columns...)
}

// editAndLog edits rows of ids, padded on a random side, and completes the log.
func editAndLog(t testing.TB, r *rand.Rand, p editor.Policy, dt func(arrow.DataType, int) arrow.DataType, element arrow.DataType, rows [][]uint32, pad bool) *editedBatch {
	t.Helper()
	priorHandle := openBundled(t)
	handle := openPolicy(t, priorHandle, p)
	scores := allScores(r, rows, fingerprint(t, priorHandle), 4)
	ids, mask, labels := make([][]int64, len(rows)), make([][]int64, len(rows)), make([][]int64, len(rows))
	offsets, keys := make([]int64, len(rows)), make([]string, len(rows))
	hashes := make([]uint64, len(rows))
	for i, row := range rows {
		ids[i], mask[i], labels[i] = []int64{}, []int64{}, []int64{} // nil would be null
		for _, id := range row {
			ids[i], mask[i], labels[i] = append(ids[i], int64(id)), append(mask[i], 1), append(labels[i], int64(id))
			if r.IntN(5) == 0 {
				labels[i][len(labels[i])-1] = ignored
			}
		}
		for pad && len(ids[i]) < 12 {
			at := []int{0, len(ids[i])}[i%2]
			ids[i], mask[i], labels[i] = slices.Insert(ids[i], at, 0), slices.Insert(mask[i], at, 0), slices.Insert(labels[i], at, ignored)
		}
		offsets[i], keys[i] = r.Int64N(1000), fmt.Sprintf("document %d", i)
		hashes[i] = scores[i].hash
	}
	b := &editedBatch{columns: []namedColumn{
		{"input_ids", fromJSON(t, dt(element, 12), asJSON(t, ids))},
		{"attention_mask", fromJSON(t, dt(i64, 12), asJSON(t, mask))},
		{"labels", fromJSON(t, dt(i32, 12), asJSON(t, labels))},
		{"key", fromJSON(t, arrow.BinaryTypes.String, asJSON(t, keys))},
		{"offset", fromJSON(t, i64, asJSON(t, offsets))},
	}}
	arrays, schemas, totals := cSlice[cArray](t, 2), cSlice[cSchema](t, 2), cSlice[[32]int64](t, 1)
	in := newForeign(t, structOfColumns(t, append(slices.Clone(b.columns), namedColumn{"scores", scoresArray(scores)})...))
	require.NoError(t, Edit(handle, 7, 0, 0, EditArgs{
		Batch: addr(in.array.cArray), Schema: addr(in.schema.cSchema),
		Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]), Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0]),
	}))
	b.out = importOut(t, &arrays[0], &schemas[0])
	small := importOut(t, &arrays[1], &schemas[1])
	whole, err := callLog(t, complete(priorHandle, 0),
		newForeign(t, structOfColumns(t, append(slices.Clone(b.columns), namedColumn{"ids_hash", uint64s(hashes...)})...)), newForeign(t, small))
	require.NoError(t, err)
	b.log = whole
	return b
}

// after are the batch's columns as Edit left them.
func (b *editedBatch) after(t testing.TB, mask arrow.Array) []namedColumn {
	columns := slices.Clone(b.columns)
	columns[0].array, columns[2].array = columnOf(t, b.out, "input_ids"), columnOf(t, b.out, "labels")
	columns[1].array = mask
	return columns
}

func TestLogsAreAppliedAndReverted(t *testing.T) {
	trackUsage(t)
	r := newRand(31)
	drops := 0
	for name, dt := range containers {
		for _, element := range elements {
			for _, pad := range []bool{false, true} {
				p := everyAction
				rows := randomRows(r, 12, 5, 12, 1, 12, 0, 9)
				if name == "fixed_size_list" {
					p.Bands = []editor.Band{p.Bands[0], p.Bands[2]}
					pad = true
				}
				b := editAndLog(t, r, p, dt, element, rows, pad)
				what := fmt.Sprintf("%s of %s", name, element)

				out, err := callLog(t, apply(editor.LabelsEdited), newForeign(t, structOfColumns(t, b.columns...)), newForeign(t, needed(t, b.log)))
				require.NoError(t, err, what)
				mask := b.columns[1].array
				for _, column := range []string{"input_ids", "labels"} {
					require.True(t, array.Equal(columnOf(t, b.out, column), columnOf(t, out, column)), "%s %s", what, column)
				}
				if at, ok := out.DataType().(*arrow.StructType).FieldIdx("source"); ok {
					require.Equal(t, values(t, columnOf(t, b.out, "kept")), values(t, out.Field(at)))
					before := values(t, b.columns[0].array)
					kept := make([][]int64, len(rows))
					for i, row := range values(t, out.Field(at)) {
						kept[i] = []int64{}
						for _, j := range row {
							kept[i] = append(kept[i], int64(map[bool]int{true: 1}[len(rows[i]) == 12 || values(t, mask)[i][j] == 1]))
						}
						drops += len(before[i]) - len(row)
					}
					mask = fromJSON(t, dt(i64, 12), asJSON(t, kept))
				}
				back, err := callLog(t, RevertLog, newForeign(t, structOfColumns(t, b.after(t, mask)...)), newForeign(t, needed(t, b.log)))
				require.NoError(t, err, what)
				require.True(t, array.Equal(b.columns[0].array, columnOf(t, back, "input_ids")), what)
				require.True(t, array.Equal(b.columns[2].array, columnOf(t, back, "labels")), what)
			}
		}
	}
	require.Greater(t, drops, 50)
}

func TestACompleteLogSaysWhatWasDone(t *testing.T) {
	trackUsage(t)
	r := newRand(32)
	rows := randomRows(r, 40, 30)
	b := editAndLog(t, r, everyAction, listOf, i64, rows, false)
	p, err := prior.Open(scorertest.BundledPrior(t))
	require.NoError(t, err)
	text, err := p.Text()
	require.NoError(t, err)
	column := func(name string) arrow.Array { return columnOf(t, b.log, name) }
	offsets := b.columns[4].array.(*array.Int64)
	labels := values(t, b.columns[2].array)
	seen := map[string]int{}
	for i := range b.log.Len() {
		row := int(column("row").(*array.Int64).Value(i))
		at := int(column("position").(*array.Int64).Value(i) - offsets.Value(row))
		before := column("old").(*array.Int64).Value(i)
		action := column("action").(*array.String).Value(i)
		seen[action]++
		require.Equal(t, int64(rows[row][at]), before)
		require.Equal(t, fmt.Sprintf("document %d", row), column("key").(*array.String).Value(i))
		require.Equal(t, action == "drop", column("new").IsNull(i))
		require.Equal(t, action == "drop", column("new_text").IsNull(i))
		require.Equal(t, text.Bytes(uint32(before)), column("old_text").(*array.Binary).Value(i))
		if action != "drop" {
			require.Equal(t, text.Bytes(uint32(column("new").(*array.Int64).Value(i))), column("new_text").(*array.Binary).Value(i))
		}
		bytes := 0
		for _, id := range rows[row][:at] {
			bytes += len(text.Bytes(id))
		}
		require.EqualValues(t, bytes, column("byte_offset").(*array.Int64).Value(i))
		logp := column("logp").(*array.Float32).Value(i)
		require.InEpsilon(t, math.Exp(float64(logp)), column("p").(*array.Float64).Value(i), 1e-15)
		require.Equal(t, labels[row][at] == ignored, column("context").(*array.Boolean).Value(i))
		require.Equal(t, hashOf(rows[row]).Lo, column("ids_hash").(*array.Uint64).Value(i))
	}
	require.Len(t, seen, 3, "%v", seen)
}

func TestLogsThatAreNotOfTheBatchAreRefused(t *testing.T) {
	trackUsage(t)
	r := newRand(33)
	rows := randomRows(r, 12, 12, 12)
	b := editAndLog(t, r, everyAction, listOf, i64, rows, false)
	log := needed(t, b.log)
	n := log.Len()
	require.Greater(t, n, 8)
	int64s := func(name string, change func(i int, v int64) int64) *array.Struct {
		var changed []int64
		for i, v := range columnOf(t, log, name).(*array.Int64).Int64Values() {
			changed = append(changed, change(i, v))
		}
		return withColumn(t, log, name, fromJSON(t, i64, asJSON(t, changed)))
	}
	first := func(v int64) func(int, int64) int64 {
		return func(i int, old int64) int64 {
			if i == 0 {
				return v
			}
			return old
		}
	}
	text := func(name, value string) *array.Struct {
		return withColumn(t, log, name, fromJSON(t, arrow.BinaryTypes.String, asJSON(t, slices.Repeat([]string{value}, n))))
	}
	nulls := func(name string) *array.Struct {
		dt := columnOf(t, log, name).DataType()
		return withColumn(t, log, name, array.MakeArrayOfNull(memory.DefaultAllocator, dt, n))
	}
	part := func(from, to int) *array.Struct {
		a := array.NewSlice(log, int64(from), int64(to))
		t.Cleanup(a.Release)
		return a.(*array.Struct)
	}
	type refused struct {
		log   *array.Struct
		parts []string
	}
	cases := []refused{
		{int64s("row", first(3)), []string{"the log has row 3, but the batch has 3 rows", "toedit.log.select"}},
		{int64s("row", first(-1)), []string{"the log has row -1"}},
		{int64s("row", func(_ int, row int64) int64 { return 2 - row }), []string{"row 0: the log's key is \"document 2\"", "in the order"}},
		{int64s("position", first(-1)), []string{"row 0: the log's position is -1, but the row begins at", "offset column"}},
		{int64s("position", first(-7)), []string{"the log's position is -7, but the row begins at"}},
		{int64s("position", first(1<<40)), []string{"row 0, generation 0: the log's position is index"}},
		{int64s("old", first(5000)), []string{"row 0, generation 0: the log's", "5000"}},
		{text("action", "resampled"), []string{`the log: action is "resampled" in row 0`}},
		{text("action", "drop"), []string{"row 0, generation 0: the log's new is"}},
		{text("key", "another"), []string{`row 0: the log's key is "another", but the row's is "document 0"`}},
		{nulls("row"), []string{"the log: row is null in row 0"}},
		{nulls("ids_hash"), []string{"the log: ids_hash is null in row 0"}},
		{withColumn(t, log, "generation", columnOf(t, log, "row")), []string{"the log: column generation is int64", "toedit.log.SCHEMA"}},
		{withColumn(t, log, "ids_hash", columnOf(t, log, "edits_hash")), []string{"row 0, generation 0: the log's ids_hash is", "these ids have"}},
		{withColumn(t, log, "edits_hash", columnOf(t, log, "ids_hash")), []string{"the log's edits_hash is", "use it as it was written"}},
		{part(1, n), []string{"row 0, generation 0: the log's edit", "missing"}},
	}
	for _, c := range cases {
		_, err := callLog(t, apply(editor.LabelsEdited), newForeign(t, structOfColumns(t, b.columns...)), newForeign(t, c.log))
		requireKind(t, err, Input, c.parts...)
	}
	_, err := callLog(t, apply("some"), newForeign(t, structOfColumns(t, b.columns...)), newForeign(t, log))
	requireKind(t, err, Input, `labels is "some"`)
	_, err = callLog(t, RevertLog, newForeign(t, structOfColumns(t, b.columns...)), newForeign(t, log))
	requireKind(t, err, Input, "row 0, generation 0: the log's edited_hash", "not edited")
	_, err = callLog(t, RevertLog, newForeign(t, structOfColumns(t, b.columns[:1]...)), newForeign(t, part(0, 0)))
	require.NoError(t, err, "a log without edits is every batch's")
	_, err = callLog(t, RevertLog, newForeign(t, structOfColumns(t, namedColumn{"scores", b.columns[0].array})), newForeign(t, log))
	requireKind(t, err, Input, `column "scores" is not known here`)
	fixed := slices.Clone(b.columns)
	fixed[0].array = fromJSON(t, fixedOf(i64, 12), asJSON(t, rows))
	_, err = callLog(t, apply(editor.LabelsEdited), newForeign(t, structOfColumns(t, fixed...)), newForeign(t, log))
	requireKind(t, err, Input, "row 0: column input_ids is fixed_size_list", "another length")
	narrow := slices.Clone(b.columns[:1])
	narrow[0].array = fromJSON(t, arrow.ListOf(arrow.PrimitiveTypes.Uint16), `[[7]]`)
	g := editor.LoggedGeneration{Edits: []editor.LoggedEdit{{Old: 7, New: 70000}}}
	require.NoError(t, g.Seal([]uint32{7}))
	_, err = callLog(t, apply(editor.LabelsEdited), newForeign(t, structOfColumns(t, narrow...)), newForeign(t, oneEdit(t, g)))
	requireKind(t, err, Input, "row 0: the log has id 70000, which does not fit the column")
}

// oneEdit is a log of one edit.
func oneEdit(t testing.TB, g editor.LoggedGeneration) *array.Struct {
	e := g.Edits[0]
	one := func(name string, dt arrow.DataType, v any) namedColumn {
		return namedColumn{name, fromJSON(t, dt, asJSON(t, []any{v}))}
	}
	return structOfColumns(t, one("row", i64, 0), one("position", i64, e.Pos), one("old", i64, e.Old), one("new", i64, e.New),
		one("key", arrow.BinaryTypes.String, ""), one("generation", i32, 0), one("action", arrow.BinaryTypes.String, e.Action.String()),
		one("context", arrow.FixedWidthTypes.Boolean, nil), namedColumn{"ids_hash", uint64s(g.IDsHash)},
		namedColumn{"edited_hash", uint64s(g.EditedHash)}, namedColumn{"edits_hash", uint64s(g.EditsHash)})
}

func TestCompletingRefusesWhatEditDidNotSee(t *testing.T) {
	trackUsage(t)
	handle := openBundled(t)
	batch := func(ids string, hash uint64) *foreignBatch {
		return newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), ids)},
			namedColumn{"ids_hash", uint64s(hash)}))
	}
	log := func(row, position, before, after int64) *foreignBatch {
		one := func(v int64) arrow.Array { return fromJSON(t, i64, asJSON(t, []int64{v})) }
		return newForeign(t, structOfColumns(t, namedColumn{"row", one(row)}, namedColumn{"position", one(position)},
			namedColumn{"old", one(before)}, namedColumn{"new", one(after)},
			namedColumn{"logp", fromJSON(t, arrow.PrimitiveTypes.Float32, `[-1]`)}, namedColumn{"band", fromJSON(t, i32, `[0]`)}))
	}
	hash := hashOf([]uint32{7, 8}).Lo
	for _, c := range []struct {
		batch, log *foreignBatch
		parts      []string
	}{
		{batch(`[[7, 9]]`, hash), log(0, 1, 8, 5), []string{"row 0: its ids were changed after they were edited"}},
		{batch(`[[7, 8]]`, hash), log(1, 1, 8, 5), []string{"the log has row 1, but the batch has 1 rows"}},
		{batch(`[[7, 8]]`, hash), log(0, 2, 8, 5), []string{"row 0: the log has position 2, which the row lacks"}},
		{batch(`[[7, 8]]`, hash), log(0, 1, 7, 5), []string{"row 0: the log's old is 7 at index 1"}},
		{newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), `[[7, 8]]`)})), log(0, 1, 8, 5), []string{"the batch: column ids_hash is missing"}},
		{batch(`[[7, 8]]`, hash), batch(`[[7, 8]]`, hash), []string{"the log: column row is missing"}},
	} {
		_, err := callLog(t, complete(handle, 0), c.batch, c.log)
		requireKind(t, err, Input, c.parts...)
	}
	_, err := callLog(t, complete(1<<60, 0), batch(`[[7, 8]]`, hash), log(0, 1, 8, 5))
	requireKind(t, err, Closed)
	out, err := callLog(t, complete(handle, 3), batch(`[[7, 8]]`, hash), log(0, 1, 8, -1))
	require.NoError(t, err)
	key := hashOf([]uint32{7, 8})
	assert.Equal(t, fmt.Sprintf("%016x%016x", key.Hi, key.Lo), columnOf(t, out, "key").(*array.String).Value(0))
	assert.EqualValues(t, 3, columnOf(t, out, "generation").(*array.Int32).Value(0))
	assert.True(t, columnOf(t, out, "context").IsNull(0))
}

// Offsets, lengths and nulls of a foreign log are looked at before they are followed.
func TestHostileLogs(t *testing.T) {
	trackUsage(t)
	r := newRand(34)
	b := editAndLog(t, r, everyAction, listOf, i64, randomRows(r, 12, 12), false)
	for _, spoil := range []func(*foreignBatch){
		func(b *foreignBatch) { a, _ := b.column("position"); a.length = 1 },
		func(b *foreignBatch) { a, _ := b.column("key"); set(a.memory[1], 1, int32(-4)) },
		func(b *foreignBatch) { a, _ := b.column("action"); a.pointers[2] = 0 },
		func(b *foreignBatch) { a, _ := b.column("new"); a.nullCount, a.pointers[0] = 1, 0 },
		func(b *foreignBatch) { a, _ := b.column("context"); a.pointers[1] = 0 },
		func(b *foreignBatch) { a, _ := b.column(""); a.pointers[0] = someNull(t, 1) },
	} {
		log := newForeign(t, needed(t, b.log))
		spoil(log)
		_, err := callLog(t, apply(editor.LabelsEdited), newForeign(t, structOfColumns(t, b.columns...)), log)
		requireKind(t, err, Input)
	}
	require.Nil(t, poison.Load())
}
