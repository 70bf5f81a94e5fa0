package capi

import (
	"fmt"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func readRows(t testing.TB, prior uint64, b *foreignBatch, options string) (*array.Struct, error) {
	t.Helper()
	return readInto(t, b, func(batch, schema, out, outSchema Address) error {
		return ReadRows(prior, batch, schema, options, out, outSchema)
	})
}

// readInto calls a function that takes a batch and fills a struct array.
func readInto(t testing.TB, b *foreignBatch, call func(batch, schema, out, outSchema Address) error) (*array.Struct, error) {
	t.Helper()
	a, s := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	fill(a)
	fill(s)
	err := call(addr(b.array.cArray), addr(b.schema.cSchema), addr(&a[0]), addr(&s[0]))
	require.EqualValues(t, 1, *b.arrayReleases)
	require.EqualValues(t, 1, *b.schemaReleases)
	b.clobber()
	if err != nil {
		require.Equal(t, cArray{}, a[0])
		require.Equal(t, cSchema{}, s[0])
		return nil, err
	}
	return importOut(t, &a[0], &s[0]), nil
}

// The rows are the real tokens, whatever their type and padding, and the hashes are those of scored rows.
func TestReadRows(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	rows := [][]uint32{{5, 6, 4095}, {}, {7}}
	want := ""
	for _, row := range rows {
		windows := []int32{}
		if n := len(row); n > 0 {
			windows = []int32{0, 0, int32(n), 1} // one window, with the BOS id in front
		}
		want += fmt.Sprintf(",{\"ids_hash\":%d,\"input_ids\":%s,\"windows\":%s}", hashOf(row).Lo, asJSON(t, row), asJSON(t, windows))
	}
	want = "[" + want[1:] + "]"
	for _, element := range elements {
		column := namedColumn{"input_ids", fromJSON(t, arrow.ListOf(element), `[[5, 6, 4095], [], [7]]`)}
		got, err := readRows(t, prior, newForeign(t, structOfColumns(t, column)), "{}")
		require.NoError(t, err)
		assert.JSONEq(t, want, jsonOf(t, got), element)
	}
	got, err := readRows(t, prior, newForeign(t, structOfColumns(t,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), `[[5, 6, 4095, -1], [-1, -1, -1, -1], [-1, -1, 7, -1]]`)},
		namedColumn{"attention_mask", fromJSON(t, arrow.ListOf(i64), `[[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]`)})), "{}")
	require.NoError(t, err)
	assert.JSONEq(t, want, jsonOf(t, got), "padded")
	got, err = readRows(t, prior, newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), `[]`)})), "{}")
	require.NoError(t, err)
	assert.Zero(t, got.Len())
}

// Long rows are read in windows, packed ones document by document, as they are scored.
func TestReadRowsWindows(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t) // a context of 512, of which half stands before what a later window scores
	long := make([]uint32, 700)
	for i := range long {
		long[i] = uint32(1 + i)
	}
	ids := namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), asJSON(t, [][]uint32{long, {0, 5, 6, 7}}))}
	got, err := readRows(t, prior, newForeign(t, structOfColumns(t, ids)), "{}")
	require.NoError(t, err)
	assert.Equal(t, [][]int64{{0, 0, 512, 1, 256, 512, 700, 1}, {0, 1, 4, 0}}, values(t, columnOf(t, got, "windows")))
	got, err = readRows(t, prior, newForeign(t, structOfColumns(t, ids)), `{"split_after": 5}`)
	require.NoError(t, err)
	assert.Equal(t, []int64{0, 1, 2, 0, 2, 2, 4, 1}, values(t, columnOf(t, got, "windows"))[1])
	_, err = readRows(t, prior, newForeign(t, structOfColumns(t, ids)), `{"split": 5}`)
	requireKind(t, err, Input, "split")
}

func TestReadRowsErrors(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	ids := func(text string) namedColumn {
		return namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), text)}
	}
	for _, c := range []struct {
		columns []namedColumn
		parts   []string
	}{
		{[]namedColumn{ids(`[[1], [2, 4096]]`)}, []string{"row 1: input_ids[1] is 4096", "4095"}},
		{[]namedColumn{ids(`[[1], null]`)}, []string{"row 1: input_ids is null"}},
		{[]namedColumn{ids(`[[1]]`), {"labels", fromJSON(t, arrow.ListOf(i64), `[[1]]`)}}, []string{`"labels" is not known`}},
		{[]namedColumn{{"ids", fromJSON(t, arrow.ListOf(i64), `[[1]]`)}}, []string{`"ids" is not known`}},
	} {
		_, err := readRows(t, prior, newForeign(t, structOfColumns(t, c.columns...)), "{}")
		requireKind(t, err, Input, c.parts...)
	}
	scorer, _ := bundledScorer(t, 1)
	_, err := readRows(t, scorer, newForeign(t, structOfColumns(t, ids(`[[1]]`))), "{}")
	requireKind(t, err, Closed, "is a scorer, not a prior")
	b := newForeign(t, structOfColumns(t, ids(`[[1]]`)))
	requireKind(t, ReadRows(prior, addr(b.array.cArray), addr(b.schema.cSchema), "{}", 0, 0), Input, "null pointer")
	assert.EqualValues(t, 1, *b.arrayReleases)
	out, schema := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	requireKind(t, ReadRows(prior, 0, 0, "{}", addr(&out[0]), addr(&schema[0])), Input, "null pointer")
}

// Hashes and lengths are those of the real tokens, whatever their type and padding.
func TestHashRows(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	expected := make([]uint64, 9)
	for i, row := range [][]uint32{{5, 6, 4095}, {}, {7}} {
		h := hashOf(row)
		expected[i], expected[3+i], expected[6+i] = h.Lo, h.Hi, uint64(len(row))
	}
	for _, element := range elements {
		got, err := hashesOf(t, prior, 3, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(element), `[[5, 6, 4095], [], [7]]`)})
		require.NoError(t, err)
		assert.Equal(t, expected, got, element)
	}
	got, err := hashesOf(t, prior, 3,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), `[[5, 6, 4095, -1], [-1, -1, -1, -1], [-1, -1, 7, -1]]`)},
		namedColumn{"attention_mask", fromJSON(t, arrow.ListOf(i64), `[[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]`)},
		namedColumn{"position_ids", fromJSON(t, arrow.ListOf(i64), `[[0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]]`)})
	require.NoError(t, err)
	assert.Equal(t, expected, got, "padded")
	_, err = hashesOf(t, prior, 0, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), `[]`)})
	require.NoError(t, err)
}

func TestHashRowsErrors(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	ids := namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), `[[1, 2], [3, 4, 5]]`)}
	for _, c := range []struct {
		columns []namedColumn
		parts   []string
	}{
		{[]namedColumn{{"input_ids", fromJSON(t, arrow.ListOf(i64), `[[1], [2, 4096]]`)}}, []string{"row 1: input_ids[1] is 4096"}},
		{[]namedColumn{ids, {"seq_lengths", fromJSON(t, arrow.ListOf(i64), `[[2], [1, 2]]`)}}, []string{"row 1 holds several documents", "token 1"}},
		{[]namedColumn{ids, {"document_ids", fromJSON(t, arrow.ListOf(i64), `[[0, 1], [0, 0, 0]]`)}}, []string{"row 0 holds several documents"}},
		{[]namedColumn{ids, {"position_ids", fromJSON(t, arrow.ListOf(i64), `[[0, 1], [0, 1, 0]]`)}}, []string{"row 1 holds several documents", "token 2"}},
		{[]namedColumn{ids, {"labels", fromJSON(t, arrow.ListOf(i64), `[[1, 2], [3, 4, 5]]`)}}, []string{`"labels" is not known`}},
	} {
		_, err := hashesOf(t, prior, 2, c.columns...)
		requireKind(t, err, Input, c.parts...)
	}
	for _, n := range []int{-1, 1, 3} {
		_, err := hashesOf(t, prior, n, ids)
		requireKind(t, err, Input, fmt.Sprintf("the words of %d rows", n), "the batch has 2 rows")
	}
	b := newForeign(t, structOfColumns(t, ids))
	requireKind(t, HashRows(prior, addr(b.array.cArray), addr(b.schema.cSchema), 0, 2), Input, "at address 0x0")
	assert.EqualValues(t, 1, *b.arrayReleases)
}

func hashesOf(t testing.TB, prior uint64, n int, columns ...namedColumn) ([]uint64, error) {
	t.Helper()
	words := cSlice[uint64](t, 3*max(n, 1))
	b := newForeign(t, structOfColumns(t, columns...))
	err := HashRows(prior, addr(b.array.cArray), addr(b.schema.cSchema), addr(&words[0]), n)
	require.EqualValues(t, 1, *b.arrayReleases)
	require.EqualValues(t, 1, *b.schemaReleases)
	return words, err
}
