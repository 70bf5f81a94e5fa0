package capi

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
)

// callStatistics runs Statistics on a batch, with out-parameters full of garbage, and checks what must hold whatever comes
// back.
func callStatistics(t testing.TB, handle, seed uint64, epoch uint32, b *foreignBatch) (*array.Struct, *statistics, error) {
	t.Helper()
	out, schema := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	fill(out)
	fill(schema)
	text, err := Statistics(handle, seed, epoch, addr(b.array.cArray), addr(b.schema.cSchema), addr(&out[0]), addr(&schema[0]))
	require.Equal(t, []int64{1, 1}, []int64{*b.arrayReleases, *b.schemaReleases})
	b.clobber()
	if err != nil {
		require.Equal(t, []cArray{{}}, out)
		require.Equal(t, []cSchema{{}}, schema)
		require.Empty(t, text)
		return nil, nil, err
	}
	documents, totals := importOut(t, &out[0], &schema[0]), new(statistics)
	require.NoError(t, json.Unmarshal([]byte(text), totals))
	return documents, totals, nil
}

func TestStatisticsCountWhatEditCounts(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	for container, of := range containers {
		for _, element := range elements {
			t.Run(fmt.Sprintf("%s<%s>", container, element), func(t *testing.T) {
				r := newRand(8)
				lengths := []int{9, 70, 0, 1, 33}
				if container == "fixed_size_list" {
					lengths = slices.Repeat([]int{23}, 5)
				}
				rows := randomRows(r, lengths...)
				scores := allScores(r, rows, print, 5)
				unscore(&scores[1], lengths[1]-1)
				batch := func() *foreignBatch {
					whole := structOfColumns(t, namedColumn{"input_ids", fromJSON(t, of(element, 23), asJSON(t, rows))}, namedColumn{"scores", scoresArray(scores)})
					return newForeign(t, array.NewSlice(whole, 1, 5))
				}
				want := mustEdit(t, handle, 11, 3, batch()).counts
				documents, got, err := callStatistics(t, handle, 11, 3, batch())
				require.NoError(t, err)
				assert.Equal(t, want, counts{
					Rows: int64(got.Rows), EmptyRows: int64(got.EmptyRows), OverlongRows: int64(got.OverlongRows), Tokens: got.Tokens,
					Unscored: got.Unscored, Protected: got.Protected, Candidates: got.Candidates, Changes: got.Changes,
					Expected: want.Expected,
				})
				assert.InDelta(t, want.Expected, float64(got.Expected)*editor.ExpectedUnit, 4*editor.ExpectedUnit)
				assert.Positive(t, got.Changes)
				assert.Equal(t, 4, documents.Len())
				changes := int64(0)
				for _, n := range columnOf(t, documents, "changes").(*array.Int64).Int64Values() {
					changes += n
				}
				assert.Equal(t, got.Changes, changes)
				assert.Equal(t, 10, len(values(t, columnOf(t, documents, "histogram"))[3]))
				assert.Equal(t, 2, len(values(t, columnOf(t, documents, "margins"))[3]))
			})
		}
	}
}

func TestStatisticsOfWhatCannotBeEdited(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(9)
	rows := randomRows(r, 4, 30)
	scores := allScores(r, rows, print, 5)
	scores[1].hash++
	batch := func() *foreignBatch {
		return newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, listOf(i64, 0), asJSON(t, rows))}, namedColumn{"scores", scoresArray(scores)}))
	}
	_, _, err := callStatistics(t, handle, 0, 0, batch())
	require.ErrorContains(t, err, "scores: row 1: ids_hash is")
	_, _, err = callStatistics(t, handle+1000, 0, 0, batch())
	require.ErrorContains(t, err, "closed: handle")

	b := batch()
	_, err = Statistics(handle, 0, 0, addr(b.array.cArray), addr(b.schema.cSchema), 0, 0)
	require.ErrorContains(t, err, "null pointer")
	require.Equal(t, []int64{1, 1}, []int64{*b.arrayReleases, *b.schemaReleases})
}
