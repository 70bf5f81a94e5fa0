package capi

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/memory"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
	"toedit/editor/scorer/scorertest"
)

// input is what one case of a table of errors may spoil.
type input struct {
	rows    [][]int64
	scores  []rowScores
	columns map[string]arrow.Array // beside or instead of input_ids and scores
	without string
}

func (in *input) batch(t testing.TB) arrow.Array {
	columns := map[string]arrow.Array{
		"input_ids": fromJSON(t, arrow.ListOf(i64), asJSON(t, in.rows)),
		"scores":    scoresArray(in.scores),
	}
	for name, c := range in.columns {
		columns[name] = c
	}
	delete(columns, in.without)
	var named []namedColumn
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		named = append(named, namedColumn{name, columns[name]})
	}
	return structOfColumns(t, named...)
}

func TestEditErrors(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	list := func(of func(arrow.DataType, int) arrow.DataType, e arrow.DataType, text string) arrow.Array {
		return fromJSON(t, of(e, 4), text)
	}
	column := func(name string, c arrow.Array) func(*input) {
		return func(in *input) { in.columns = map[string]arrow.Array{name: c} }
	}
	f32 := arrow.PrimitiveTypes.Float32
	cases := []struct {
		name  string
		spoil func(*input)
		kind  Kind
		parts []string
	}{
		{"id beyond the vocabulary", func(in *input) { in.rows[1][2] = vocabulary }, Input, []string{"row 1: input_ids[2] is 4096", "4095", "tokenizer"}},
		{"id beyond uint32", func(in *input) { in.rows[1][2] = 1 << 32 }, Input, []string{"row 1: input_ids[2] is 4294967296"}},
		{"largest id", func(in *input) { in.rows[0][0] = 1 << 62 }, Input, []string{"row 0: input_ids[0] is 4611686018427387904"}},
		{"negative id", func(in *input) { in.rows[1][3] = -1 }, Input, []string{"row 1: input_ids[3] is -1", "attention_mask"}},
		{"id beyond the vocabulary behind padding", func(in *input) {
			in.rows[1] = []int64{-1, -1, 5000, 1, 2, 3}
			in.columns = map[string]arrow.Array{"attention_mask": list(listOf, i64, `[[1,1,1,1],[0,0,1,1,1,1]]`)}
		}, Input, []string{"row 1: input_ids[2] is 5000"}},
		{"negative id that is not padding", func(in *input) {
			in.rows[1] = []int64{-1, -7, 1, 2}
			in.columns = map[string]arrow.Array{"attention_mask": list(listOf, i64, `[[1,1,1,1],[0,1,1,1]]`)}
		}, Input, []string{"row 1: input_ids[1] is -7"}},
		{"null row", column("input_ids", list(listOf, i32, `[[1,2,3,4],null]`)), Input, []string{"row 1: input_ids is null"}},
		{"null id", column("input_ids", list(listOf, i32, `[[1,2,3,4],[1,2,null,4]]`)), Input, []string{"row 1: input_ids[2] is null"}},
		{"null id in a fixed-size list", column("input_ids", list(fixedOf, i32, `[[1,2,3,4],[1,2,null,4]]`)), Input, []string{"row 1: input_ids[2] is null"}},
		{"ids of float", column("input_ids", list(listOf, f32, `[[1],[2]]`)), Input, []string{"input_ids holds float32", "int32, int64, uint16 or uint32"}},
		{"ids of int16", column("input_ids", list(listOf, arrow.PrimitiveTypes.Int16, `[[1],[2]]`)), Input, []string{"input_ids holds int16"}},
		{"ids of uint64", column("input_ids", list(listOf, arrow.PrimitiveTypes.Uint64, `[[1],[2]]`)), Input, []string{"input_ids holds uint64"}},
		{"ids of bool", column("input_ids", list(listOf, arrow.FixedWidthTypes.Boolean, `[[true],[false]]`)), Input, []string{"input_ids holds bool"}},
		{"ids of string", column("input_ids", list(listOf, arrow.BinaryTypes.String, `[["a"],["b"]]`)), Input, []string{"batch.input_ids", "utf8"}},
		{"ids of lists", column("input_ids", fromJSON(t, arrow.ListOf(arrow.ListOf(i32)), `[[[1]],[[2]]]`)), Input, []string{"batch.input_ids", "list"}},
		{"ids that are no list", column("input_ids", fromJSON(t, i32, `[1,2]`)), Input, []string{"input_ids is int32", "list"}},
		{"ids of float64", column("input_ids", list(listOf, arrow.PrimitiveTypes.Float64, `[[1],[2]]`)), Input, []string{"batch.input_ids[]", `"g"`}},
		{"no ids", func(in *input) { in.without = "input_ids" }, Input, []string{"no column input_ids"}},
		{"no scores", func(in *input) { in.without = "scores" }, Input, []string{"no column scores", "Prior.score"}},
		{"unknown column", column("lables", fromJSON(t, i32, `[1,2]`)), Input, []string{`"lables"`, "labels"}},

		{"scores of another prior", func(in *input) { in.scores[1].prior = strings.Repeat("0", 32) }, Scores, []string{"row 1", strings.Repeat("0", 32), print}},
		{"scores of no prior", func(in *input) { in.scores[1].prior = "\xff\x00" }, Scores, []string{"row 1", `"\xff\x00"`}},
		{"scores of other ids", func(in *input) { in.scores[0].hash++ }, Scores, []string{"row 0: ids_hash", "other ids"}},
		{"swapped scores", func(in *input) { slices.Reverse(in.scores) }, Scores, []string{"row 0: ids_hash"}},
		{"cut ids", func(in *input) { in.rows[1] = in.rows[1][:3] }, Scores, []string{"row 1: logp", "has 4 values for 3 ids", "cut"}},
		{"cut scores", func(in *input) { in.scores[1].logp = in.scores[1].logp[:3] }, Scores, []string{"row 1: logp", "has 3 values for 4 ids"}},
		{"NaN", func(in *input) { in.columns = map[string]arrow.Array{"scores": withNaN(in.scores)} }, Scores, []string{"row 1: logp", "is NaN at position 1"}},
		{"positive ln P", func(in *input) { in.scores[1].logp[2] = 0.5 }, Scores, []string{"row 1: logp", "is 0.5 at position 2"}},
		{"k larger than what is stored", func(in *input) { in.scores[1] = makeScores(newRand(1), ids32(in.rows[1]), print, 3) }, Scores, []string{"row 1: k", "is 3", "4"}},
		{"negative k", func(in *input) { in.scores[1].k = -1 }, Scores, []string{"row 1: k", "is -1"}},
		{"k that does not fit", func(in *input) { in.scores[1].k = 6 }, Scores, []string{"row 1: topk_ids", "k = 6"}},
		{"band that was not kept", func(in *input) { in.scores[1].pos, in.scores[1].ids, in.scores[1].topLogp = nil, nil, nil }, Scores, []string{"row 1: topk_pos", "lacks position 0", "keep"}},
		{"stored position beyond the row", func(in *input) { in.scores[1].pos[len(in.scores[1].pos)-1] = 4 }, Scores, []string{"row 1: topk_pos", "is 4"}},
		{"stored position below 0", func(in *input) { in.scores[1].pos[0] = -1 }, Scores, []string{"row 1: topk_pos", "is -1"}},
		{"stored id beyond the vocabulary", func(in *input) { fillWith(in.scores[1].ids, vocabulary) }, Scores, []string{"row 1: topk_ids", "4096 at position 0", "4095"}},
		{"stored id below 0", func(in *input) { fillWith(in.scores[1].ids, -5) }, Scores, []string{"row 1: topk_ids", "-5 at position 0"}},
		{"ln P that is no float16", func(in *input) { fillWith(in.scores[1].topLogp, -0.123456) }, Scores, []string{"row 1: topk_logp", "-0.123456 at position 0", "float16"}},
		{"NaN in the top k", func(in *input) { fillWith(in.scores[1].topLogp, float32(math.NaN())) }, Scores, []string{"row 1: topk_logp", "NaN at position 0"}},
		{"null scores", func(in *input) { in.scores[1].valid = false }, Scores, []string{"row 1: scores is null"}},
		{"null field of scores", func(in *input) { in.scores[1].nullPositions = true }, Scores, []string{"row 1: scores.topk_pos is null"}},
		{"scores that are no struct", column("scores", fromJSON(t, i32, `[1,2]`)), Scores, []string{"column scores is int32"}},
		{"scores without a field", func(in *input) { in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "k", nil)} }, Scores, []string{`no field "k"`}},
		{"logp of another type", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "logp", list(listOf, i32, `[[-1],[-1]]`))}
		}, Scores, []string{"scores.logp is list<item: int32", "list<float32>"}},
		{"logp that is no list", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "logp", fromJSON(t, f32, `[-1,-1]`))}
		}, Scores, []string{"scores.logp is float32"}},
		{"topk_ids of another type", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "topk_ids", list(listOf, i64, `[[1],[1]]`))}
		}, Scores, []string{"scores.topk_ids is", "list<int32>"}},
		{"topk_pos with a null", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "topk_pos", list(listOf, i32, `[[1],[1,null]]`))}
		}, Scores, []string{"row 1: scores.topk_pos[1] is null"}},
		{"k of another type", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "k", fromJSON(t, i64, `[4,4]`))}
		}, Scores, []string{"scores.k is int64", "int32"}},
		{"ids_hash of another type", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "ids_hash", fromJSON(t, i64, `[4,4]`))}
		}, Scores, []string{"scores.ids_hash is int64", "uint64"}},
		{"prior of another type", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "prior", fromJSON(t, i64, `[4,4]`))}
		}, Scores, []string{"scores.prior is int64", "string"}},
		{"null hash", func(in *input) {
			in.columns = map[string]arrow.Array{"scores": scoresWith(t, in, "ids_hash", fromJSON(t, arrow.PrimitiveTypes.Uint64, `[4,null]`))}
		}, Scores, []string{"row 1: scores.ids_hash is null"}},

		{"negative offset", column("offset", fromJSON(t, i64, `[0,-3]`)), Input, []string{"row 1: its offset is -3"}},
		{"huge offset", column("offset", int64s(0, math.MaxInt64)), Input, []string{"row 1: its offset is 9223372036854775807"}},
		{"null offset", column("offset", fromJSON(t, i64, `[0,null]`)), Input, []string{"row 1: the offset column is null"}},
		{"offset of another type", column("offset", fromJSON(t, i32, `[0,0]`)), Input, []string{"offset column is int32", "int64"}},
		{"null key", column("key", fromJSON(t, arrow.BinaryTypes.String, `["a",null]`)), Input, []string{"row 1: the key column is null"}},
		{"key of another type", column("key", fromJSON(t, i32, `[0,0]`)), Input, []string{"key column is int32", "string, large_string or int64"}},

		{"mask that is too short", column("attention_mask", list(listOf, i64, `[[1,1,1,1],[1,1,1]]`)), Input, []string{"row 1: attention_mask has 3 values, but input_ids has 4"}},
		{"mask of another type", column("protected_mask", list(listOf, f32, `[[1,1,1,1],[1,1,1,1]]`)), Input, []string{"protected_mask holds float32", "bool"}},
		{"mask that is no list", column("special_tokens_mask", fromJSON(t, i32, `[1,1]`)), Input, []string{"special_tokens_mask is int32"}},
		{"null mask", column("special_tokens_mask", list(listOf, i32, `[[1,1,1,1],null]`)), Input, []string{"row 1: special_tokens_mask is null"}},
		{"null in a mask", column("attention_mask", list(listOf, i32, `[[1,1,1,1],[1,1,1,null]]`)), Input, []string{"row 1: attention_mask[3] is null"}},

		{"wrong label", func(in *input) {
			labels := [][]int64{{-100, -100, -100, -100}, slices.Clone(in.rows[1])}
			labels[1][2]++
			in.columns = map[string]arrow.Array{"labels": list(listOf, i64, asJSON(t, labels))}
		}, Input, []string{"row 1: labels[2] is ", "input_ids[2] is ", "-100", "shifted"}},
		{"labels of another type", column("labels", list(listOf, arrow.PrimitiveTypes.Uint32, `[[1],[2]]`)), Input, []string{"labels is list<item: uint32", "int32 or int64"}},
		{"labels that are no list", column("labels", fromJSON(t, i64, `[1,1]`)), Input, []string{"labels is int64"}},
		{"labels of another length", column("labels", list(listOf, i64, `[[1],[2]]`)), Input, []string{"row 0: labels has 1 values, but input_ids has 4"}},
		{"null label", column("labels", list(listOf, i64, `[[-100,-100,-100,-100],[-100,-100,-100,null]]`)), Input, []string{"row 1: labels[3] is null"}},
		{"null labels", column("labels", list(listOf, i64, `[null,[-100,-100,-100,-100]]`)), Input, []string{"row 0: labels is null"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			in := &input{rows: [][]int64{{11, 12, 13, 14}, {21, 22, 23, 24}}}
			for _, row := range in.rows {
				// The seed gives the first candidates at positions 0 and 1.
				in.scores = append(in.scores, makeScores(newRand(2), ids32(row), print, 4))
			}
			c.spoil(in)
			_, err := call(t, handle, 0, 0, newForeign(t, in.batch(t)))
			requireKind(t, err, c.kind, c.parts...)
		})
	}
}

func int64s(values ...int64) arrow.Array {
	b := array.NewInt64Builder(memory.DefaultAllocator)
	b.AppendValues(values, nil)
	return b.NewArray()
}

func ids32(row []int64) []uint32 {
	ids := make([]uint32, len(row))
	for i, v := range row {
		ids[i] = uint32(v)
	}
	return ids
}

func fillWith[T any](values []T, v T) {
	for i := range values {
		values[i] = v
	}
}

// withNaN is a scores array in which row 1 has a NaN that is not null at position 1.
func withNaN(rows []rowScores) arrow.Array {
	a := scoresArray(rows).(*array.Struct)
	values := a.Field(0).(*array.List).ListValues().(*array.Float32)
	values.Float32Values()[len(rows[0].logp)+1] = float32(math.NaN())
	return a
}

// scoresWith replaces a field of the scores, or leaves it out.
func scoresWith(t testing.TB, in *input, field string, by arrow.Array) arrow.Array {
	s := scoresArray(in.scores).(*array.Struct)
	var columns []namedColumn
	for i, name := range scoresFields {
		switch {
		case name != field:
			columns = append(columns, namedColumn{name, s.Field(i)})
		case by != nil:
			columns = append(columns, namedColumn{name, by})
		}
	}
	return structOfColumns(t, columns...)
}

// An id that is drawn must fit the column's type. uint16 is the only one that may be too small.
func TestEditRefusesDrawnIDThatDoesNotFit(t *testing.T) {
	trackUsage(t)
	h := openFolder(t, scorertest.ChangedPrior(t, func(s map[string]any) { s["vocab_size"], s["tokenizer_size"] = 70000, 70000 }))
	handle := openPolicy(t, h, eager)
	ids := []uint32{5, 6}
	s := rowScores{logp: []float32{-3, -0.01}, pos: []int32{1}, ids: []int32{6, 65536, 65537, 65538}, topLogp: []float32{-0.0078125, -5, -6, -7},
		k: 4, hash: hashOf(ids).Lo, prior: fingerprint(t, h), valid: true}
	batch := func(e arrow.DataType) *foreignBatch {
		return newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(e), `[[], [5, 6]]`)},
			namedColumn{"scores", scoresArray([]rowScores{{logp: []float32{}, k: 4, hash: hashOf(nil).Lo, prior: s.prior, valid: true}, s})}))
	}
	_, err := call(t, handle, 0, 0, batch(arrow.PrimitiveTypes.Uint16))
	requireKind(t, err, Input, "row 1: position 1 is to become id 6553", "uint16", "int32 or int64")
	e := mustEdit(t, handle, 0, 0, batch(i32))
	assert.Greater(t, values(t, columnOf(t, e.out, "input_ids"))[1][1], int64(math.MaxUint16))
}

func TestEditNullPointers(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	rows := randomRows(newRand(1), 3)
	for missing := range 7 {
		t.Run(fmt.Sprint(missing), func(t *testing.T) {
			f := newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))},
				namedColumn{"scores", scoresArray(allScores(newRand(1), rows, print, 4))}))
			arrays, schemas, totals := cSlice[cArray](t, 2), cSlice[cSchema](t, 2), cSlice[counts](t, 1)
			fill(arrays)
			fill(schemas)
			fill(totals)
			a := EditArgs{Batch: addr(f.array.cArray), Schema: addr(f.schema.cSchema), Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
				Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0])}
			*[]*Address{&a.Batch, &a.Schema, &a.Out, &a.OutSchema, &a.Log, &a.LogSchema, &a.Counts}[missing] = 0
			requireKind(t, Edit(handle, 0, 0, 0, a), Input, "null")
			for i := range arrays {
				if a := []Address{a.Out, a.Log}[i]; a != 0 {
					assert.Equal(t, cArray{}, arrays[i])
				}
				if s := []Address{a.OutSchema, a.LogSchema}[i]; s != 0 {
					assert.Equal(t, cSchema{}, schemas[i])
				}
			}
			if a.Counts != 0 {
				assert.Equal(t, counts{}, totals[0])
			}
			assert.Equal(t, a.Batch != 0, *f.arrayReleases == 1)
			assert.Equal(t, a.Schema != 0, *f.schemaReleases == 1)
		})
	}
	requireKind(t, Edit(handle, 0, 0, 0, EditArgs{}), Input, "null")
}

func TestPolicyErrors(t *testing.T) {
	trackUsage(t)
	h := openBundled(t)
	for text, part := range map[string]string{
		``:              "JSON",
		`{"bands": []}`: "bands is empty",
		`{"threshold": 2, "k": 8, "temperature": 1, "exclude_original": false, "protect_special": true, "protected_ids": []}`:       "threshold is 2",
		`{"threshold": 0.9, "k": 0, "temperature": 1, "exclude_original": false, "protect_special": true, "protected_ids": []}`:     "k is 0",
		`{"threshold": 0.9, "k": 8, "temperature": 1, "exclude_original": false, "protect_special": true, "protected_ids": [4096]}`: "4096",
	} {
		_, err := OpenEditor(h, text)
		requireKind(t, err, Input, part)
	}
}

func TestOpenPriorErrors(t *testing.T) {
	trackUsage(t)
	_, err := OpenPrior("", "")
	requireKind(t, err, Prior, "empty")
	_, err = OpenPrior(t.TempDir(), "")
	requireKind(t, err, Prior, "prior.json", "toedit export")
}

// Without a model, everything but scoring works; opening the scorer says what is missing.
func TestOpenScorerErrors(t *testing.T) {
	trackUsage(t)
	h := openBundled(t)
	_, err := OpenScorer(h, "", `{"threads": 1}`)
	requireKind(t, err, Runtime, "empty")
	_, err = OpenScorer(h, "/nonexistent/libonnxruntime.so", `{"threads": 0}`)
	requireKind(t, err, Input, "threads is 0")
	changed := openFolder(t, scorertest.ChangedPrior(t, func(s map[string]any) { s["device"] = "cuda" }))
	_, err = OpenScorer(changed, "/nonexistent/libonnxruntime.so", `{"threads": 1, "device": "cpu"}`)
	requireKind(t, err, Prior, "exported for CUDA", "export it again")
	damaged := openFolder(t, scorertest.ChangedPrior(t, func(s map[string]any) {
		s["files"].(map[string]any)["model.onnx"].(map[string]any)["sha256"] = strings.Repeat("0", 64)
	}))
	_, err = OpenScorer(damaged, "/nonexistent/libonnxruntime.so", `{"threads": 1}`)
	requireKind(t, err, Prior, "model.onnx", "SHA-256")
}

func TestAddCounters(t *testing.T) {
	counters, values := cSlice[int64](t, 3), cSlice[int64](t, 3)
	copy(counters, []int64{1, 2, 3})
	copy(values, []int64{10, -2, math.MaxInt32})
	require.NoError(t, AddCounters(addr(&counters[0]), addr(&values[0]), 3))
	assert.Equal(t, []int64{11, 0, 3 + math.MaxInt32}, counters)
	require.NoError(t, AddCounters(addr(&counters[0]), addr(&values[0]), 0))
	requireKind(t, AddCounters(0, addr(&values[0]), 3), Input, "null pointer")
	requireKind(t, AddCounters(addr(&counters[0]), 0, 3), Input, "null pointer")
	requireKind(t, AddCounters(addr(&counters[0]), addr(&values[0]), -1), Input, "negative count")
}

// A range of P keeps the float32 ln P that it holds, and no other.
func TestKeepRanges(t *testing.T) {
	for _, p := range []float64{0, 1e-300, 0.001, 0.5, 0.9, 0.99, 1 - 1e-9, 1} {
		o := scoreOptions{Keep: [][2]float64{{p, p}}}
		r, err := o.ranges()
		require.NoError(t, err)
		ln := math.Log(p)
		assert.GreaterOrEqual(t, float64(r[0].Low), ln)
		assert.LessOrEqual(t, float64(r[0].High), ln)
		if below := math.Nextafter32(r[0].Low, float32(math.Inf(-1))); below != r[0].Low {
			assert.Less(t, float64(below), ln)
		}
		assert.Greater(t, float64(math.Nextafter32(r[0].High, 1)), ln)
	}
	for _, bad := range [][2]float64{{-0.1, 1}, {0, 1.1}, {0.9, 0.8}, {math.NaN(), 1}, {0, math.NaN()}} {
		o := scoreOptions{Keep: [][2]float64{bad}}
		_, err := o.ranges()
		requireKind(t, err, Input, "keep")
	}
	o := scoreOptions{Keep: [][2]float64{{0, 1}}}
	r, err := o.ranges()
	require.NoError(t, err)
	assert.Equal(t, float32(math.Inf(-1)), r[0].Low)
	assert.Equal(t, float32(0), r[0].High)
}

func TestOptionsAreStrict(t *testing.T) {
	for text, part := range map[string]string{
		``: "like", `[]`: "like", `{"k": 8, "keeps": []}`: "keeps", `{"k": "8"}`: "like", `{"k": 8} {}`: "after their end",
		`{"k": 8.5}`: "like", `{"keep": [["a", 1]]}`: "like", `{"split_after": -1}`: "like",
	} {
		requireKind(t, parseStrictly(text, &scoreOptions{}, `{"k": 8}`), Input, part)
	}
	var o scoreOptions
	require.NoError(t, parseStrictly(`{"k": 3, "keep": [[0.5, 0.75], [0.9, 1]]}`, &o, ""))
	assert.Equal(t, scoreOptions{K: 3, Keep: [][2]float64{{0.5, 0.75}, {0.9, 1}}}, o)
}

func TestReadingErrors(t *testing.T) {
	for reading, part := range map[string]string{
		`{"window": "off"}`:      "how to read documents",
		`{"windows": "sliding"}`: `windows is "sliding"`,
		`{"min_context": 512}`:   "with a context of 512 positions it must be 1 to 511",
	} {
		_, err := OpenPrior(scorertest.BundledPrior(t), reading)
		requireKind(t, err, Input, part)
	}
}

// The numbers of toedit.h and their names in front of Python's messages.
func TestKinds(t *testing.T) {
	for i, want := range []string{"ok", "input", "scores", "prior", "runtime", "closed", "cancelled", "internal"} {
		assert.Equal(t, want, Kind(i).String())
	}
	err := fail(Scores, "a %s", "b")
	assert.Equal(t, "scores: a b", err.Error())
	inner := &editor.ScoresError{Field: "k"}
	assert.ErrorIs(t, &Error{Scores, inner}, error(inner))
	assert.Equal(t, "internal: odd", guarded(func() error { return fmt.Errorf("odd") }).Error())
}
