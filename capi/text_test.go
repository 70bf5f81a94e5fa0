package capi

import (
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// spellingJSON is a tokenizer.json whose tokens are "a", " a", "é", the bytes of "😀", " b".
const spellingJSON = `{"model": {"type": "BPE", "byte_fallback": true, "merges": [],
	"vocab": {"a": 0, "▁a": 1, "é": 2, "<0xF0>": 3, "<0x9F>": 4, "<0x98>": 5, "<0x80>": 6, "▁b": 7}},
	"decoder": {"type": "Metaspace", "replacement": "▁"}}`

func openTokens(t testing.TB) uint64 {
	h, err := OpenTokens(spellingJSON)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, Close(h)) })
	return h
}

// texted is what EditText or Stretches returned.
type texted struct{ out, other *array.Struct }

// callText runs EditText or Stretches with out-parameters full of garbage, and checks what must hold whatever comes back.
func callText(t testing.TB, do func(uint64, TextArgs) error, handle uint64, batch, edits *foreignBatch) (*texted, error) {
	t.Helper()
	arrays, schemas := cSlice[cArray](t, 2), cSlice[cSchema](t, 2)
	fill(arrays)
	fill(schemas)
	err := do(handle, TextArgs{
		Batch: addr(batch.array.cArray), Schema: addr(batch.schema.cSchema),
		Edits: addr(edits.array.cArray), EditsSchema: addr(edits.schema.cSchema),
		Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]), Other: addr(&arrays[1]), OtherSchema: addr(&schemas[1]),
	})
	for _, b := range []*foreignBatch{batch, edits} {
		require.Equal(t, []int64{1, 1}, []int64{*b.arrayReleases, *b.schemaReleases})
		b.clobber()
	}
	if err != nil {
		require.Equal(t, []cArray{{}, {}}, arrays, "arrays after %v", err)
		require.Equal(t, []cSchema{{}, {}}, schemas)
		return nil, err
	}
	return &texted{importOut(t, &arrays[0], &schemas[0]), importOut(t, &arrays[1], &schemas[1])}, nil
}

// tableOf makes a struct array of columns, given by name, type and JSON.
func tableOf(t testing.TB, columns ...[3]any) *foreignBatch {
	named := make([]namedColumn, len(columns))
	for i, c := range columns {
		named[i] = namedColumn{c[0].(string), fromJSON(t, c[1].(arrow.DataType), c[2].(string))}
	}
	return newForeign(t, structOfColumns(t, named...))
}

var (
	str, largeStr = arrow.BinaryTypes.String, arrow.BinaryTypes.LargeString
	idLists       = arrow.ListOf(i32)
)

func textBatch(t testing.TB, dt arrow.DataType, more ...[3]any) *foreignBatch {
	return tableOf(t, append([][3]any{
		{"text", dt, `["a a", "", "É😀", "aé😀", "A"]`},
		{"input_ids", idLists, `[[1, 1], [], [2, 3, 4, 5, 6], [0, 2, 3, 4, 5, 6], [0]]`},
	}, more...)...)
}

func tokenEdits(t testing.TB, rows, positions, news string) *foreignBatch {
	return tableOf(t, [3]any{"row", i64, rows}, [3]any{"position", i64, positions}, [3]any{"new", i64, news})
}

func TestEditText(t *testing.T) {
	trackUsage(t)
	tokens := openTokens(t)
	edits := func() *foreignBatch { return tokenEdits(t, "[0, 0, 2, 3, 3]", "[0, 1, 0, 1, 3]", "[7, -1, 0, 7, 0]") }
	for _, dt := range []arrow.DataType{str, largeStr} {
		r, err := callText(t, EditText, tokens, textBatch(t, dt), edits())
		require.NoError(t, err)
		assert.Equal(t, dt.String(), columnOf(t, r.out, "text").DataType().String())
		assert.Equal(t, `["b" "" "É😀" "a b😀" "A"]`, columnOf(t, r.out, "text").String())
		assert.Equal(t, `[1 1 0 1 1]`, columnOf(t, r.out, "aligned").String(), "rows without edits are not looked at")
		for name, want := range map[string]string{
			"start": `[0 1 -1 1 4]`, "end": `[1 3 -1 3 4]`, "length": `[1 0 0 2 0]`, "made": `[1 1 0 1 0]`,
		} {
			assert.Equal(t, want, columnOf(t, r.other, name).String(), name)
		}
	}

	offsets := [3]any{"offsets", arrow.ListOf(i32), `[[], [], [0, 1, 1, 2, 1, 2, 1, 2, 1, 2], [], []]`}
	r, err := callText(t, EditText, tokens, textBatch(t, str, offsets), edits())
	require.NoError(t, err)
	assert.Equal(t, `["b" "" "a😀" "a b😀" "A"]`, columnOf(t, r.out, "text").String())
	assert.Equal(t, `[1 1 1 1 1]`, columnOf(t, r.out, "aligned").String())
}

func TestEditTextOfAPrior(t *testing.T) {
	trackUsage(t)
	batch := tableOf(t, [3]any{"text", str, `["!"]`}, [3]any{"input_ids", idLists, `[[1]]`})
	r, err := callText(t, EditText, openBundled(t), batch, tokenEdits(t, "[0]", "[0]", "[2]"))
	require.NoError(t, err)
	assert.Equal(t, `["\""]`, columnOf(t, r.out, "text").String())
}

func TestEditTextWithoutRows(t *testing.T) {
	trackUsage(t)
	batch := tableOf(t, [3]any{"text", str, `[]`}, [3]any{"input_ids", idLists, `[]`})
	r, err := callText(t, EditText, openTokens(t), batch, tokenEdits(t, "[]", "[]", "[]"))
	require.NoError(t, err)
	assert.Zero(t, r.out.Len())
	assert.Zero(t, r.other.Len())
}

func placeEdits(t testing.TB, rows, starts, ends, lengths string) *foreignBatch {
	return tableOf(t, [3]any{"row", i64, rows}, [3]any{"start", i64, starts}, [3]any{"end", i64, ends}, [3]any{"length", i64, lengths})
}

func TestStretches(t *testing.T) {
	trackUsage(t)
	batch := textBatch(t, largeStr, [3]any{"edited", largeStr, `["a bb", "", "x😀", "aé😀", "A"]`})
	r, err := callText(t, Stretches, openTokens(t), batch, placeEdits(t, "[0, 2]", "[1, 0]", "[3, 2]", "[3, 1]"))
	require.NoError(t, err)
	assert.Equal(t, `[1 1 0 1 1]`, columnOf(t, r.out, "aligned").String())
	for name, want := range map[string]string{
		"row": `[0 2]`, "first": `[0 0]`, "end": `[2 5]`, "left": `[0 0]`, "right": `[0 0]`,
		"old": `["a a" "É😀"]`, "new": `["a bb" "x😀"]`,
	} {
		assert.Equal(t, want, columnOf(t, r.other, name).String(), name)
	}
}

func TestTextRefuses(t *testing.T) {
	trackUsage(t)
	tokens := openTokens(t)
	none := func() *foreignBatch { return tokenEdits(t, "[]", "[]", "[]") }
	one := [3]any{"text", str, `["a"]`}
	ids := [3]any{"input_ids", idLists, `[[0]]`}
	edited := func(text string) *foreignBatch { return tableOf(t, one, ids, [3]any{"edited", str, text}) }
	for _, c := range []struct {
		do           func(uint64, TextArgs) error
		batch, edits *foreignBatch
		want         string
	}{
		{EditText, tableOf(t, ids), none(), "column text is missing"},
		{EditText, tableOf(t, ids, [3]any{"text", i64, "[1]"}), none(), "not string or large_string"},
		{EditText, tableOf(t, ids, [3]any{"text", str, "[null]"}), none(), "row 0: text is null"},
		{EditText, tableOf(t, one), none(), "no column input_ids"},
		{EditText, tableOf(t, one, ids, [3]any{"edited", str, `[""]`}), none(), `column "edited" is not known`},
		{EditText, tableOf(t, one, [3]any{"input_ids", idLists, `[[8]]`}), tokenEdits(t, "[0]", "[0]", "[1]"), "row 0"},
		{EditText, tableOf(t, one, ids, [3]any{"offsets", arrow.ListOf(i64), `[[]]`}), none(), "offsets holds int64"},
		{EditText, tableOf(t, one, ids), tokenEdits(t, "[1]", "[0]", "[1]"), "edit 0 is in row 1"},
		{EditText, tableOf(t, one, ids), tokenEdits(t, "[0]", "[1]", "[1]"), "edit 0 is at position 1 of row 0, which has 1 tokens"},
		{EditText, tableOf(t, one, ids), tokenEdits(t, "[0, 0]", "[0, 0]", "[1, 1]"), "positions must ascend"},
		{EditText, tableOf(t, one, ids), tokenEdits(t, "[0]", "[0]", "[8]"), "its new id is 8"},
		{EditText, tableOf(t, one, ids), tokenEdits(t, "[0]", "[null]", "[8]"), "edit 0: its position is null"},
		{EditText, tableOf(t, one, ids), placeEdits(t, "[]", "[]", "[]", "[]"), `column "end" is not known`},
		{EditText, tableOf(t, one, ids), tableOf(t, [3]any{"row", i64, "[0]"}), "column position is missing"},
		{Stretches, tableOf(t, one, ids), placeEdits(t, "[]", "[]", "[]", "[]"), "no column edited"},
		{Stretches, edited(`["ab"]`), placeEdits(t, "[0]", "[0]", "[1]", "[1]"), "its edited text has 2 bytes, but its edits make 1 of it"},
		{Stretches, edited(`["a"]`), placeEdits(t, "[0]", "[0]", "[2]", "[1]"), "edits must ascend"},
		{Stretches, edited(`["a"]`), placeEdits(t, "[0, 0]", "[0, 0]", "[1, 1]", "[1, 0]"), "edits must ascend"},
		{Stretches, edited(`["a"]`), placeEdits(t, "[0]", "[0]", "[1]", "[-1]"), "edits must ascend"},
	} {
		_, err := callText(t, c.do, tokens, c.batch, c.edits)
		requireKind(t, err, Input, c.want)
	}

	_, err := callText(t, EditText, 1, textBatch(t, str), none())
	requireKind(t, err, Closed, "was never opened")
	_, err = OpenTokens(strings.Replace(spellingJSON, "Metaspace", "None", 1))
	requireKind(t, err, Input, "a BPE model must be byte-level")
	_, err = OpenEditor(tokens, "{}")
	requireKind(t, err, Closed, "is a tokenizer, not a prior")
}
