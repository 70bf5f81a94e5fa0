package capi

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/apache/arrow/go/v17/arrow/array"
	"github.com/apache/arrow/go/v17/arrow/float16"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor"
	"toedit/editor/scorer/scorertest"
)

// bundledScorer is a scorer for the bundled prior, and that prior.
func bundledScorer(t testing.TB, threads int) (scorer, prior uint64) {
	library := scorertest.Library(t)
	prior = openBundled(t)
	scorer, err := OpenScorer(prior, library, fmt.Sprintf(`{"threads": %d}`, threads))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, Close(scorer)) })
	return scorer, prior
}

// start begins a job. The batch's memory is overwritten as soon as it was released.
func start(t testing.TB, scorer uint64, b *foreignBatch, options string) (uint64, error) {
	t.Helper()
	job, err := StartScore(scorer, addr(b.array.cArray), addr(b.schema.cSchema), options)
	require.EqualValues(t, 1, *b.arrayReleases)
	require.EqualValues(t, 1, *b.schemaReleases)
	b.clobber()
	return job, err
}

func take(t testing.TB, job uint64) (*array.Struct, error) {
	t.Helper()
	a, s := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	fill(a)
	fill(s)
	if err := TakeScore(job, addr(&a[0]), addr(&s[0])); err != nil {
		require.Equal(t, cArray{}, a[0])
		require.Equal(t, cSchema{}, s[0])
		return nil, err
	}
	return importOut(t, &a[0], &s[0]), nil
}

func mustScore(t testing.TB, scorer uint64, b *foreignBatch, options string) *array.Struct {
	t.Helper()
	job, err := start(t, scorer, b, options)
	require.NoError(t, err)
	out, err := take(t, job)
	require.NoError(t, err)
	return out
}

func jsonOf(t testing.TB, a arrow.Array) string {
	text, err := a.MarshalJSON()
	require.NoError(t, err)
	return string(text)
}

const keepAll = `{"k": 4, "keep": [[0, 1]]}`

// repeats makes rows in which some tokens are easy to foresee.
func repeats(lengths ...int) [][]uint32 {
	rows := randomRows(newRand(41), lengths...)
	for _, row := range rows {
		for i := range row {
			row[i] = row[i%7]%300 + 1
		}
	}
	return rows
}

func TestScoreColumn(t *testing.T) {
	trackUsage(t)
	scorer, prior := bundledScorer(t, 1)
	rows := repeats(30, 0, 1, 9)
	out := mustScore(t, scorer, newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))})), keepAll)
	assert.Equal(t, scoresType.String(), out.DataType().String())
	require.Equal(t, 4, out.Len())
	logp := columnOf(t, out, "logp").(*array.List)
	k := columnOf(t, out, "k").(*array.Int32)
	hash := columnOf(t, out, "ids_hash").(*array.Uint64)
	print := columnOf(t, out, "prior").(*array.String)
	pos, ids := values(t, columnOf(t, out, "topk_pos")), values(t, columnOf(t, out, "topk_ids"))
	for i, row := range rows {
		from, to := logp.ValueOffsets(i)
		assert.EqualValues(t, len(row), to-from)
		assert.Len(t, pos[i], len(row))
		assert.Len(t, ids[i], 4*len(row))
		assert.EqualValues(t, 4, k.Value(i))
		assert.Equal(t, hashOf(row).Lo, hash.Value(i))
		assert.Equal(t, fingerprint(t, prior), print.Value(i))
	}
	for _, v := range logp.ListValues().(*array.Float32).Float32Values() {
		assert.LessOrEqual(t, v, float32(0))
	}
	top := columnOf(t, out, "topk_logp").(*array.List).ListValues().(*array.Float32)
	for _, v := range top.Float32Values() {
		require.Equal(t, v, float16.New(v).Float32(), "a float16 value")
	}
	assert.Zero(t, logp.ListValues().NullN())
	assert.Contains(t, jsonOf(t, out), fingerprint(t, prior))

	none := mustScore(t, scorer, newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.LargeListOf(i64), `[]`)})), keepAll)
	assert.Equal(t, 0, none.Len())
	assert.Equal(t, out.DataType().String(), none.DataType().String())
}

// Unscored tokens are nulls with zeros beneath, so that no NaN is ever stored.
func TestScoreNulls(t *testing.T) {
	trackUsage(t)
	library := scorertest.Library(t)
	prior := openFolder(t, scorertest.ChangedPrior(t, func(s map[string]any) {
		s["context_length"], s["bos"] = 8, map[string]any{"rule": "never", "id": nil}
	}))
	scorer, err := OpenScorer(prior, library, `{"threads": 1}`)
	require.NoError(t, err)
	defer func() { assert.NoError(t, Close(scorer)) }()
	out := mustScore(t, scorer, newForeign(t, structOfColumns(t,
		namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, repeats(12, 3, 1)))})), keepAll)
	logp := columnOf(t, out, "logp").(*array.List).ListValues().(*array.Float32)
	var nulls []int
	for i := range logp.Len() {
		if logp.IsNull(i) {
			nulls = append(nulls, i)
			assert.Zero(t, logp.Float32Values()[i])
		}
	}
	assert.Equal(t, []int{0, 12, 15}, nulls, "first tokens that nothing stands before")
	assert.Equal(t, 3, logp.NullN())
	assert.Equal(t, [][]int64{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {1, 2}, {}}, values(t, columnOf(t, out, "topk_pos")))
}

// The same tokens have the same scores in every type, sliced, and padded on any side.
func TestScoreEveryTokenType(t *testing.T) {
	trackUsage(t)
	scorer, _ := bundledScorer(t, 2)
	rows := repeats(12, 12, 12, 12)
	want := ""
	check := func(what string, columns ...namedColumn) {
		t.Helper()
		got := jsonOf(t, mustScore(t, scorer, newForeign(t, array.NewSlice(structOfColumns(t, columns...), 1, 3)), keepAll))
		if want == "" {
			want = got
		}
		assert.Equal(t, want, got, what)
	}
	for container, of := range containers {
		for _, element := range elements {
			check(container+" "+element.String(), namedColumn{"input_ids", fromJSON(t, of(element, 12), asJSON(t, rows))})
		}
	}
	for left := range 3 {
		padded, mask := make([][]int64, 4), make([][]int64, 4)
		for i := range rows {
			padded[i], mask[i] = slices.Repeat([]int64{-100}, 15), make([]int64, 15)
			for j, id := range rows[i] {
				padded[i][left+j], mask[i][left+j] = int64(id), 1
			}
		}
		check("padded", namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), asJSON(t, padded))},
			namedColumn{"attention_mask", maskArray(t, arrow.PrimitiveTypes.Uint8, mask)})
	}
}

func TestScoreErrors(t *testing.T) {
	trackUsage(t)
	scorer, _ := bundledScorer(t, 1)
	batch := func(columns ...namedColumn) *foreignBatch { return newForeign(t, structOfColumns(t, columns...)) }
	ids := func(text string) namedColumn {
		return namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), text)}
	}
	for _, c := range []struct {
		batch   *foreignBatch
		options string
		parts   []string
	}{
		{batch(ids(`[[1], [2, 4096]]`)), keepAll, []string{"row 1: input_ids[1] is 4096", "4095"}},
		{batch(ids(`[[1], [-2]]`)), keepAll, []string{"row 1: input_ids[0] is -2"}},
		{batch(ids(`[[1], [0, 9999]]`), namedColumn{"attention_mask", fromJSON(t, arrow.ListOf(i64), `[[1], [0, 1]]`)}), keepAll, []string{"row 1: input_ids[1] is 9999"}},
		{batch(ids(`[[1], null]`)), keepAll, []string{"row 1: input_ids is null"}},
		{batch(namedColumn{"ids", fromJSON(t, arrow.ListOf(i64), `[[1]]`)}), keepAll, []string{`"ids"`}},
		{batch(ids(`[[1]]`), namedColumn{"labels", fromJSON(t, arrow.ListOf(i64), `[[1]]`)}), keepAll, []string{`"labels" is not known`}},
		{batch(ids(`[[1]]`)), `{"k": 0}`, []string{"k is 0"}},
		{batch(ids(`[[1]]`)), `{"k": 65}`, []string{"k is 65", "64"}},
		{batch(ids(`[[1]]`)), `{"k": 1, "keep": [[0.9, 2]]}`, []string{"keep: [0.9, 2]"}},
		{batch(ids(`[[1]]`)), `{"k": 1, "kep": []}`, []string{"kep"}},
		{batch(ids(`[[1]]`)), ``, []string{"options"}},
	} {
		_, err := start(t, scorer, c.batch, c.options)
		requireKind(t, err, Input, c.parts...)
	}
	requireKind(t, func() error { _, err := StartScore(scorer, 0, 0, keepAll); return err }(), Input, "null pointer")
}

// Scores that were just made, and scores that were stored, give the edits that package editor gives.
func TestScoreThenEdit(t *testing.T) {
	trackUsage(t)
	scorer, prior := bundledScorer(t, 2)
	policy := eager
	policy.Bands = editor.UpFrom(0.02)
	handle := openPolicy(t, prior, policy)
	rows := repeats(60, 5, 0, 90)
	ids := fromJSON(t, arrow.LargeListOf(i32), asJSON(t, rows))
	scores := mustScore(t, scorer, newForeign(t, structOfColumns(t, namedColumn{"input_ids", ids})), `{"k": 4, "keep": [[0.02, 1]]}`)
	e := mustEdit(t, handle, 2, 1, newForeign(t, structOfColumns(t, namedColumn{"input_ids", ids}, namedColumn{"scores", scores})))
	assert.Positive(t, e.counts.Changes)
	assert.Less(t, e.counts.Candidates, e.counts.Tokens)
	assert.InDelta(t, e.counts.Expected, float64(e.counts.Changes), 1e-9, "the original is never drawn")
	var unpacked []rowScores
	for i := range rows {
		list := func(name string) (from, to int) {
			l := columnOf(t, scores, name).(*array.List)
			f, e := l.ValueOffsets(i)
			return int(f), int(e)
		}
		f32 := func(name string) []float32 {
			from, to := list(name)
			return columnOf(t, scores, name).(*array.List).ListValues().(*array.Float32).Float32Values()[from:to]
		}
		ints := func(name string) []int32 {
			from, to := list(name)
			return columnOf(t, scores, name).(*array.List).ListValues().(*array.Int32).Int32Values()[from:to]
		}
		unpacked = append(unpacked, rowScores{logp: f32("logp"), pos: ints("topk_pos"), ids: ints("topk_ids"), topLogp: f32("topk_logp"),
			k: 4, hash: hashOf(rows[i]).Lo})
	}
	want, log, total := reference{rows: rows, scores: unpacked}.edit(t, policy, 2, 1)
	assert.Equal(t, want, values(t, columnOf(t, e.out, "input_ids")))
	assert.Equal(t, log, e.log)
	assert.Equal(t, total, e.counts)

	wider := policy
	wider.Bands = editor.UpFrom(0.002)
	_, err := call(t, openPolicy(t, prior, wider), 2, 1, newForeign(t, structOfColumns(t, namedColumn{"input_ids", ids}, namedColumn{"scores", scores})))
	requireKind(t, err, Scores, "lacks position")
	larger := policy
	larger.K = 5
	_, err = call(t, openPolicy(t, prior, larger), 2, 1, newForeign(t, structOfColumns(t, namedColumn{"input_ids", ids}, namedColumn{"scores", scores})))
	requireKind(t, err, Scores, "row 0: k")
}

func TestOverlongRowsAreCounted(t *testing.T) {
	trackUsage(t)
	library := scorertest.Library(t)
	prior, err := OpenPrior(scorertest.ChangedPrior(t, func(s map[string]any) { s["context_length"] = 16 }), `{"windows": "off"}`)
	require.NoError(t, err)
	defer func() { assert.NoError(t, Close(prior)) }()
	scorer, err := OpenScorer(prior, library, `{"threads": 1}`)
	require.NoError(t, err)
	defer func() { assert.NoError(t, Close(scorer)) }()
	open := eager
	open.Bands, open.ProtectSpecial = editor.UpFrom(0.01), false
	handle := openPolicy(t, prior, open)
	rows := repeats(16, 17, 0, 40, 3)
	ids := fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))
	scores := mustScore(t, scorer, newForeign(t, structOfColumns(t, namedColumn{"input_ids", ids})), keepAll)
	e := mustEdit(t, handle, 0, 0, newForeign(t, structOfColumns(t, namedColumn{"input_ids", ids}, namedColumn{"scores", scores})))
	assert.EqualValues(t, 5, e.counts.Rows)
	assert.EqualValues(t, 1, e.counts.EmptyRows)
	assert.EqualValues(t, 2, e.counts.OverlongRows)
	assert.EqualValues(t, 1+24, e.counts.Unscored)
	out := values(t, columnOf(t, e.out, "input_ids"))
	for j := 16; j < 40; j++ {
		assert.EqualValues(t, rows[3][j], out[3][j])
	}
}

func TestJobs(t *testing.T) {
	trackUsage(t)
	scorer, _ := bundledScorer(t, 1)
	small := func() *foreignBatch {
		return newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, repeats(20)))}))
	}
	job, err := start(t, scorer, small(), keepAll)
	require.NoError(t, err)
	requireKind(t, Close(job), Input, "is a scoring job")
	for done := false; !done; {
		done, err = WaitScore(job, 50)
		require.NoError(t, err)
	}
	n, err := ScoredTokens(job)
	require.NoError(t, err)
	assert.EqualValues(t, 20, n)
	_, err = take(t, job)
	require.NoError(t, err)
	_, err = take(t, job)
	requireKind(t, err, Closed, "closed")
	requireKind(t, CancelScore(job), Closed, "closed")

	// A missing out-parameter does not end the job.
	job, err = start(t, scorer, small(), keepAll)
	require.NoError(t, err)
	requireKind(t, TakeScore(job, 0, 0), Input, "null pointer")
	require.NoError(t, CancelScore(job))

	rows := repeats(slices.Repeat([]int{500}, 300)...)
	job, err = start(t, scorer, newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))})), keepAll)
	require.NoError(t, err)
	done, err := WaitScore(job, 100)
	require.NoError(t, err)
	assert.False(t, done)
	begun := time.Now()
	require.NoError(t, CancelScore(job))
	assert.Less(t, time.Since(begun), 2*time.Second)
	requireKind(t, CancelScore(job), Closed, "closed")

	// Cancelled while another thread waits for it: whichever of the two calls comes first ends the job.
	job, err = start(t, scorer, newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, rows))})), keepAll)
	require.NoError(t, err)
	result := make(chan error)
	a, s := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	go func() { result <- TakeScore(job, addr(&a[0]), addr(&s[0])) }()
	time.Sleep(20 * time.Millisecond)
	cancelled := CancelScore(job)
	taken := <-result
	var known *Error
	require.ErrorAs(t, taken, &known)
	assert.Contains(t, []Kind{Cancelled, Closed}, known.Kind)
	if cancelled != nil {
		requireKind(t, cancelled, Closed)
		assert.Equal(t, Cancelled, known.Kind)
	}
	assert.Equal(t, cArray{}, a[0])
	assert.Equal(t, cSchema{}, s[0])
}

// Closing a scorer waits for its jobs, whose results can be taken afterwards.
func TestCloseScorerWithJobs(t *testing.T) {
	trackUsage(t)
	library := scorertest.Library(t)
	prior := openBundled(t)
	scorer, err := OpenScorer(prior, library, `{"threads": 1}`)
	require.NoError(t, err)
	batch := func() *foreignBatch {
		return newForeign(t, structOfColumns(t, namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i32), asJSON(t, repeats(300, 300)))}))
	}
	job, err := start(t, scorer, batch(), keepAll)
	require.NoError(t, err)
	var closers sync.WaitGroup
	failed := make([]error, 3)
	for i := range failed {
		closers.Go(func() { failed[i] = Close(scorer) })
	}
	closers.Wait()
	slices.SortFunc(failed, func(a, b error) int {
		if a == nil {
			return -1
		}
		return 1
	})
	require.NoError(t, failed[0])
	requireKind(t, failed[1], Closed)
	requireKind(t, failed[2], Closed)
	done, err := WaitScore(job, 0)
	require.NoError(t, err)
	assert.True(t, done)
	_, err = start(t, scorer, batch(), keepAll)
	requireKind(t, err, Closed, "closed")
	out, err := take(t, job)
	require.NoError(t, err)
	assert.Equal(t, 2, out.Len())
}

func TestOpenScorerWithoutRuntime(t *testing.T) {
	trackUsage(t)
	prior := openBundled(t)
	_, err := OpenScorer(prior, "/nonexistent/libonnxruntime.so", `{"threads": 1}`)
	requireKind(t, err, Runtime, "/nonexistent/libonnxruntime.so")
}
