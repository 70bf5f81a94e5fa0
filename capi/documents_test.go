package capi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// packed is a batch of one row with a column about its documents; "masked" is document_ids with padding in the middle.
func packed(t testing.TB, name string, values string) *foreignBatch {
	columns := []namedColumn{{"input_ids", fromJSON(t, arrow.ListOf(i32), `[[11, 12, 13, 14, 15, 16, 17]]`)}}
	switch name {
	case "":
	case "masked":
		columns = append(columns, namedColumn{"attention_mask", fromJSON(t, arrow.ListOf(i32), `[[1, 1, 1, 0, 1, 1, 1]]`)},
			namedColumn{"document_ids", fromJSON(t, arrow.ListOf(i64), values)})
	default:
		columns = append(columns, namedColumn{name, fromJSON(t, arrow.ListOf(i64), values)})
	}
	return newForeign(t, structOfColumns(t, columns...))
}

// Whatever column says where documents begin, the row's scores are those of its documents alone.
func TestDocumentsOfPackedRows(t *testing.T) {
	trackUsage(t)
	scorer, _ := bundledScorer(t, 1)
	logp := func(b *foreignBatch, options string) string {
		return strings.ReplaceAll(jsonOf(t, columnOf(t, mustScore(t, scorer, b, options), "logp")), "\n", "")
	}
	alone := func(ids string) string {
		text := logp(newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), ids)})), keepAll)
		return text[1 : len(text)-1]
	}
	join := func(a, b string) string {
		return "[" + strings.TrimSuffix(a, "]") + "," + strings.TrimPrefix(b, "[") + "]"
	}
	want := join(alone(`[[11, 12, 13]]`), alone(`[[14, 15, 16, 17]]`))
	require.NotEqual(t, want, logp(packed(t, "", ""), keepAll))
	for name, values := range map[string]string{
		"document_ids": `[[5, 5, 5, 2, 2, 2, 2]]`, "position_ids": `[[4, 5, 6, 0, 1, 2, 3]]`, "seq_lengths": `[[3, 0, 4]]`,
	} {
		assert.Equal(t, want, logp(packed(t, name, values), keepAll), name)
	}
	assert.Equal(t, want, logp(packed(t, "", ""), `{"k": 4, "keep": [[0, 1]], "split_after": 13}`))
	assert.Equal(t, logp(packed(t, "", ""), keepAll), logp(packed(t, "", ""), `{"k": 4, "keep": [[0, 1]], "split_after": 17}`))
	assert.Equal(t, logp(packed(t, "", ""), keepAll), logp(packed(t, "position_ids", `[[0, 1, 2, 3, 4, 5, 6]]`), keepAll))
	// Padding is not there.
	assert.Equal(t, join(alone(`[[11, 12, 13]]`), alone(`[[15, 16, 17]]`)), logp(packed(t, "masked", `[[1, 1, 1, 0, 2, 2, 2]]`), keepAll))

	for _, c := range []struct{ name, values, part string }{
		{"seq_lengths", `[[3, 3]]`, "row 0: seq_lengths add up to 6, but the row has 7 tokens"},
		{"seq_lengths", `[[3, 5]]`, "row 0: seq_lengths[1] is 5, but only 4 of the row's 7 tokens are left"},
		{"seq_lengths", `[[-1, 8]]`, "seq_lengths[0] is -1"},
		{"document_ids", `[[1, 2]]`, "document_ids has 2 values, but input_ids has 7"},
		{"document_ids", `[[1, 1, 1, 1, 1, 1, null]]`, "document_ids[6] is null"},
	} {
		_, err := start(t, scorer, packed(t, c.name, c.values), keepAll)
		requireKind(t, err, Input, c.part)
	}
	wrong := newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), `[[11]]`)},
		namedColumn{"document_ids", fromJSON(t, arrow.ListOf(arrow.PrimitiveTypes.Float32), `[[1]]`)}))
	_, err := start(t, scorer, wrong, keepAll)
	requireKind(t, err, Input, "document_ids holds float32, but must hold int32 or int64")
}

func TestScorerStats(t *testing.T) {
	scorer, prior := bundledScorer(t, 1)
	mustScore(t, scorer, packed(t, "", ""), keepAll)
	stats, err := ScorerStats(scorer)
	require.NoError(t, err)
	assert.JSONEq(t, `{"runs": 1, "positions": 7, "padded": 8, "halved": 0, "waited": 0}`, stats)
	_, err = ScorerStats(prior)
	require.Error(t, err)
	for options, part := range map[string]string{
		`{"threads": 1, "memory_limit": -5}`: "memory_limit is -5", `{"threads": 0}`: "threads is 0", `{"thread": 1}`: "not like",
	} {
		_, err = OpenScorer(prior, "/nonexistent", options)
		requireKind(t, err, Input, part)
	}
	_, err = OpenScorer(prior, "/nonexistent", fmt.Sprintf(`{"threads": 1, "device": %q}`, "cuda"))
	requireKind(t, err, Prior, "cannot run on cuda")
}
