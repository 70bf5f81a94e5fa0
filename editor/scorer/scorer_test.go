package scorer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor/prior"
	"toedit/editor/scorer/scorertest"
)

var everything = []Range{{Low: float32(math.Inf(-1)), High: 0}}

func open(t *testing.T, folder string, threads int) *Scorer {
	t.Helper()
	library := scorertest.Library(t)
	p, err := prior.Open(folder)
	require.NoError(t, err)
	s, err := Open(p, Options{Library: library, Threads: threads})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

func bundled(t *testing.T, threads int) *Scorer {
	t.Helper()
	return open(t, scorertest.BundledPrior(t), threads)
}

func score(t *testing.T, s *Scorer, req Request) []Row {
	t.Helper()
	j, err := s.Start(req)
	require.NoError(t, err)
	rows, err := j.Result()
	require.NoError(t, err)
	return rows
}

// someRows makes rows without the id 0, which is the bundled prior's BOS.
func someRows(seed uint64, lengths ...int) [][]uint32 {
	r := rand.New(rand.NewPCG(seed, 0))
	rows := make([][]uint32, len(lengths))
	for i, n := range lengths {
		rows[i] = make([]uint32, n)
		for j := range rows[i] {
			// A small range of ids repeats itself, so that some tokens become probable.
			rows[i][j] = 1 + uint32(r.IntN(40))
			if j >= 6 && r.IntN(4) > 0 {
				rows[i][j] = rows[i][j-6]
			}
		}
	}
	return rows
}

// requireSame compares rows bit for bit; NaNs are equal.
func requireSame(t *testing.T, want, got Row, what string) {
	t.Helper()
	bits := func(v []float32) []uint32 {
		b := make([]uint32, len(v))
		for i := range v {
			b[i] = math.Float32bits(v[i])
		}
		return b
	}
	require.Equal(t, bits(want.LogP), bits(got.LogP), what)
	require.Equal(t, want.Unscored, got.Unscored, what)
	require.Equal(t, append([]int32{}, want.TopPos...), append([]int32{}, got.TopPos...), what)
	require.Equal(t, append([]int32{}, want.TopIDs...), append([]int32{}, got.TopIDs...), what)
	require.Equal(t, bits(want.TopLogP), bits(got.TopLogP), what)
}

// A row's scores depend on its ids alone: one bit pattern for every batch, order, number of threads and goroutines.
func TestScoresDependOnTheRowAlone(t *testing.T) {
	rows := someRows(1, 0, 1, 2, 3, 7, 8, 9, 17, 40, 41, 130, 300)
	req := func(rows [][]uint32) Request { return Request{Rows: rows, K: 8, Keep: everything} }
	one := bundled(t, 1)
	alone := make([]Row, len(rows))
	for i := range rows {
		alone[i] = score(t, one, req(rows[i:i+1]))[0]
	}
	check := func(t *testing.T, s *Scorer, order []int) {
		t.Helper()
		batch := make([][]uint32, len(order))
		for i, row := range order {
			batch[i] = rows[row]
		}
		got := score(t, s, req(batch))
		for i, row := range order {
			requireSame(t, alone[row], got[i], fmt.Sprintf("row of %d ids in a batch of %d", len(rows[row]), len(order)))
		}
	}
	all := make([]int, len(rows))
	for i := range all {
		all[i] = i
	}
	for _, threads := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("%d threads", threads), func(t *testing.T) {
			s := bundled(t, threads)
			assert.Equal(t, threads, s.Threads())
			check(t, s, all)
		})
	}
	t.Run("orders and batches", func(t *testing.T) {
		backwards := slices.Clone(all)
		slices.Reverse(backwards)
		check(t, one, backwards)
		r := rand.New(rand.NewPCG(2, 2))
		r.Shuffle(len(backwards), func(i, j int) { backwards[i], backwards[j] = backwards[j], backwards[i] })
		check(t, one, backwards[:5])
		check(t, one, backwards[5:])
		check(t, one, []int{4, 4, 4, 11, 4}) // short rows padded to a long one, and repeated
	})
	t.Run("goroutines", func(t *testing.T) {
		s := bundled(t, 2)
		var jobs sync.WaitGroup
		got := make([][]Row, 4)
		for g := range got {
			jobs.Go(func() {
				j, err := s.Start(req(rows[g*3 : g*3+3]))
				if assert.NoError(t, err) {
					got[g], err = j.Result()
					assert.NoError(t, err)
				}
			})
		}
		jobs.Wait()
		for i := range rows {
			requireSame(t, alone[i], got[i/3][i%3], strconv.Itoa(i))
		}
	})
}

// Padding goes up to the context and not beyond, also where that is no multiple of 8; the scores are the same.
func TestContextThatIsNoMultipleOfEight(t *testing.T) {
	rows := someRows(3, 45, 44, 41, 40, 39, 12)
	wide := bundled(t, 1)
	narrow := open(t, scorertest.ChangedPrior(t, func(s map[string]any) { s["context_length"] = 45 }), 1)
	want := score(t, wide, Request{Rows: rows, K: 4, Keep: everything})
	got := score(t, narrow, Request{Rows: rows, K: 4, Keep: everything})
	for i := range rows {
		requireSame(t, want[i], got[i], strconv.Itoa(len(rows[i])))
	}
	for i := range rows {
		requireSame(t, want[i], score(t, narrow, Request{Rows: rows[i : i+1], K: 4, Keep: everything})[0], "alone")
	}
}

func TestScores(t *testing.T) {
	s := bundled(t, 2)
	rows := someRows(4, 60, 1, 0)
	got := score(t, s, Request{Rows: rows, K: 5, Keep: everything})
	for i, row := range got {
		require.Len(t, row.LogP, len(rows[i]))
		assert.Zero(t, row.Unscored)
		require.Len(t, row.TopPos, len(rows[i]))
		require.Len(t, row.TopIDs, 5*len(rows[i]))
		require.Len(t, row.TopLogP, 5*len(rows[i]))
		for p := range row.TopPos {
			assert.EqualValues(t, p, row.TopPos[p])
			ids, lps := row.TopIDs[5*p:5*p+5], row.TopLogP[5*p:5*p+5]
			for j := range ids {
				if j > 0 {
					assert.True(t, lps[j-1] >= lps[j], "most probable first")
					assert.NotEqual(t, ids[j-1], ids[j])
				}
				if uint32(ids[j]) == rows[i][p] {
					assert.InDelta(t, row.LogP[p], lps[j], 0.001+0.001*math.Abs(float64(lps[j])), "one model")
				}
			}
		}
	}
	// k asks for a part of the same
	fewer := score(t, s, Request{Rows: rows, K: 2, Keep: everything})
	for p := range fewer[0].TopPos {
		assert.Equal(t, got[0].TopIDs[5*p:5*p+2], fewer[0].TopIDs[2*p:2*p+2])
		assert.Equal(t, got[0].TopLogP[5*p:5*p+2], fewer[0].TopLogP[2*p:2*p+2])
	}
	most := score(t, s, Request{Rows: rows[1:2], K: 64, Keep: everything})
	assert.Len(t, most[0].TopIDs, 64)
}

// The top k is stored where ln P lies in a range, ends included, and nowhere else.
func TestKeep(t *testing.T) {
	s := bundled(t, 1)
	rows := someRows(5, 50, 30)
	all := score(t, s, Request{Rows: rows, K: 3, Keep: everything})
	sorted := slices.Clone(all[0].LogP)
	slices.Sort(sorted)
	lower, upper, low := sorted[30], sorted[40], sorted[3]
	for name, keep := range map[string][]Range{
		"nothing":    nil,
		"none there": {{Low: 0.5, High: 1}},
		"one":        {{Low: lower, High: upper}},
		"two":        {{Low: lower, High: upper}, {Low: float32(math.Inf(-1)), High: low}},
		"a point":    {{Low: lower, High: lower}},
		"reversed":   {{Low: upper, High: lower}},
	} {
		got := score(t, s, Request{Rows: rows, K: 3, Keep: keep})
		for i := range rows {
			require.Equal(t, all[i].LogP, got[i].LogP, "keep changes nothing else")
			var pos, ids []int32
			for p, lp := range all[i].LogP {
				if slices.ContainsFunc(keep, func(r Range) bool { return r.Low <= lp && lp <= r.High }) {
					pos = append(pos, int32(p))
					ids = append(ids, all[i].TopIDs[3*p:3*p+3]...)
				}
			}
			assert.Equal(t, append([]int32{}, pos...), append([]int32{}, got[i].TopPos...), name)
			assert.Equal(t, append([]int32{}, ids...), append([]int32{}, got[i].TopIDs...), name)
		}
		if name == "one" {
			assert.GreaterOrEqual(t, len(got[0].TopPos), 11)
		}
	}
}

// What lies beyond the context stays unscored; what lies within it is scored as if nothing came after.
func TestRowsLongerThanTheContext(t *testing.T) {
	const context = 32
	s := open(t, scorertest.ChangedPrior(t, func(s map[string]any) { s["context_length"] = context }), 1)
	long := someRows(6, 70)[0]
	begun := append([]uint32{0}, long...)
	got := score(t, s, Request{Rows: [][]uint32{long, long[:context], long[:context+1], begun}, K: 2, Keep: everything})
	for i, scored := range []int{context, context, context, context + 1} {
		row := got[i]
		for p, lp := range row.LogP {
			unscored := p >= scored || i == 3 && p == 0
			assert.Equal(t, unscored, lp != lp, "row %d position %d", i, p)
		}
		assert.Equal(t, got[0].LogP[:context], row.LogP[scored-context:scored], "the BOS in the row is the BOS in front of it")
		assert.Equal(t, got[0].TopIDs, row.TopIDs)
	}
	assert.Equal(t, 70-context, got[0].Unscored)
	assert.Equal(t, 0, got[1].Unscored)
	assert.Equal(t, 1, got[2].Unscored)
	assert.Equal(t, 71-context, got[3].Unscored)
	assert.EqualValues(t, 0, got[0].TopPos[0])
	assert.EqualValues(t, 1, got[3].TopPos[0])
	assert.Len(t, got[3].TopPos, context)
}

func TestBOSRules(t *testing.T) {
	always := bundled(t, 1)
	never := open(t, scorertest.ChangedPrior(t, func(s map[string]any) { s["bos"] = map[string]any{"rule": "never", "id": nil} }), 1)
	row := someRows(7, 20)[0]
	begun := append([]uint32{0}, row...)
	req := Request{Rows: [][]uint32{row, begun, {0}, {5}, {}}, K: 3, Keep: everything}
	a, n := score(t, always, req), score(t, never, req)

	assert.Zero(t, a[0].Unscored, "its first token follows the BOS")
	assert.Equal(t, 1, a[1].Unscored, "the BOS itself is never scored")
	assert.Equal(t, a[0].LogP, a[1].LogP[1:])
	assert.Equal(t, a[0].TopIDs, a[1].TopIDs)
	assert.Equal(t, 1, a[2].Unscored)
	assert.Zero(t, a[3].Unscored)
	assert.Empty(t, a[4].LogP)

	assert.Equal(t, 1, n[0].Unscored)
	assert.True(t, n[0].LogP[0] != n[0].LogP[0])
	assert.EqualValues(t, 1, n[0].TopPos[0])
	requireSame(t, a[1], n[1], "a row that begins with the BOS")
	assert.NotEqual(t, a[0].LogP[1:], n[0].LogP[1:], "another context, other scores")
	assert.Equal(t, 1, n[2].Unscored)
	assert.Equal(t, 1, n[3].Unscored)
	assert.Empty(t, n[3].TopPos)
}

func TestStartRefuses(t *testing.T) {
	s := bundled(t, 1)
	for _, c := range []struct {
		req   Request
		parts []string
	}{
		{Request{K: 0}, []string{"k is 0", "1 to 64"}},
		{Request{K: 65}, []string{"k is 65", "larger --k"}},
		{Request{K: 1, Rows: [][]uint32{{1}, {1, 2, 4096}}}, []string{"row 1: input_ids[2] is 4096", "4095"}},
		{Request{K: 1, Rows: [][]uint32{{math.MaxUint32}}}, []string{"row 0: input_ids[0] is 4294967295"}},
	} {
		_, err := s.Start(c.req)
		require.Error(t, err)
		for _, part := range c.parts {
			assert.Contains(t, err.Error(), part)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	library := scorertest.Library(t)
	openWith := func(folder string, o Options) error {
		p, err := prior.Open(folder)
		require.NoError(t, err)
		s, err := Open(p, o)
		if err == nil {
			require.NoError(t, s.Close())
		}
		return err
	}
	bundledPrior := scorertest.BundledPrior(t)
	assert.ErrorContains(t, openWith(bundledPrior, Options{Library: library}), "threads is 0")
	cuda := scorertest.ChangedPrior(t, func(s map[string]any) { s["device"] = "cuda" })
	assert.ErrorContains(t, openWith(cuda, Options{Library: library, Threads: 1}), "exported for cuda")
	wrong := scorertest.ChangedPrior(t, func(s map[string]any) { file(s, "model.onnx")["sha256"] = strings.Repeat("0", 64) })
	assert.ErrorContains(t, openWith(wrong, Options{Library: library, Threads: 1}), "model.onnx has SHA-256")

	// A model that is what its folder says, but no graph.
	garbage := filepath.Join(t.TempDir(), "model")
	require.NoError(t, os.WriteFile(garbage, []byte("no graph"), 0o600))
	broken := scorertest.ChangedPrior(t, func(s map[string]any) {
		sum := sha256.Sum256([]byte("no graph"))
		file(s, "model.onnx")["sha256"], file(s, "model.onnx")["size"] = hex.EncodeToString(sum[:]), 8
	})
	require.NoError(t, os.Remove(filepath.Join(broken, "model.onnx")))
	require.NoError(t, os.Rename(garbage, filepath.Join(broken, "model.onnx")))
	err := openWith(broken, Options{Library: library, Threads: 1})
	assert.ErrorContains(t, err, "cannot open model.onnx")
	assert.ErrorContains(t, err, broken)
	assert.NoError(t, openWith(bundledPrior, Options{Library: library, Threads: 1}), "after all that")

	// One library a process.
	err = openWith(bundledPrior, Options{Library: library + ".other", Threads: 1})
	var runtimeError *ErrRuntime
	require.ErrorAs(t, err, &runtimeError)
	assert.ErrorContains(t, err, "already uses ONNX Runtime")
}

func file(s map[string]any, name string) map[string]any {
	return s["files"].(map[string]any)[name].(map[string]any)
}

// longJob is much more than can be scored within a test.
func longJob() Request {
	return Request{Rows: someRows(8, slices.Repeat([]int{500}, 400)...), K: 8, Keep: everything}
}

// patience is how long a cancelled job may take to end. A tenth of it is usual; the rest is for machines that are busy with
// other tests.
const patience = 2 * time.Second

func TestCancelInTheMiddle(t *testing.T) {
	for _, threads := range []int{1, 2} {
		s := bundled(t, threads)
		short := Request{Rows: someRows(9, 30), K: 2, Keep: everything}
		want := score(t, s, short)
		before := runtime.NumGoroutine()
		j, err := s.Start(longJob())
		require.NoError(t, err)
		require.False(t, j.Wait(150*time.Millisecond), "it takes longer than that")
		start := time.Now()
		j.Cancel()
		assert.Less(t, time.Since(start), patience)
		assert.True(t, j.Wait(0))
		_, err = j.Result()
		assert.ErrorIs(t, err, ErrCancelled)
		assert.Empty(t, j.active)
		assert.Empty(t, s.slots)
		j.Cancel() // once more is harmless
		requireGoroutines(t, before)
		requireSame(t, want[0], score(t, s, short)[0], "the scorer goes on")
	}
}

func TestCancelAtOnceAndAfterwards(t *testing.T) {
	s := bundled(t, 1)
	for range 20 {
		j, err := s.Start(longJob())
		require.NoError(t, err)
		var both sync.WaitGroup
		both.Go(j.Cancel)
		both.Go(j.Cancel)
		both.Wait()
		_, err = j.Result()
		require.ErrorIs(t, err, ErrCancelled)
	}
	j, err := s.Start(Request{Rows: someRows(10, 5), K: 1})
	require.NoError(t, err)
	_, err = j.Result()
	require.NoError(t, err)
	j.Cancel()
	rows, err := j.Result()
	require.NoError(t, err, "it was done before")
	assert.Len(t, rows, 1)
}

func TestCancelOneOfTwoJobs(t *testing.T) {
	s := bundled(t, 1)
	rows := someRows(11, 64, 64, 64)
	want := score(t, s, Request{Rows: rows, K: 2, Keep: everything})
	long, err := s.Start(longJob())
	require.NoError(t, err)
	short, err := s.Start(Request{Rows: rows, K: 2, Keep: everything})
	require.NoError(t, err)
	time.Sleep(20 * time.Millisecond)
	long.Cancel()
	got, err := short.Result()
	require.NoError(t, err)
	for i := range rows {
		requireSame(t, want[i], got[i], "the other job")
	}
}

func TestProgress(t *testing.T) {
	s := bundled(t, 1)
	j, err := s.Start(Request{Rows: someRows(12, 100, 0, 20), K: 1})
	require.NoError(t, err)
	_, err = j.Result()
	require.NoError(t, err)
	assert.EqualValues(t, 120, j.Scored())
	assert.True(t, j.Wait(0))
	j, err = s.Start(Request{K: 1})
	require.NoError(t, err)
	rows, err := j.Result()
	require.NoError(t, err, "a job without rows")
	assert.Empty(t, rows)
}

func TestCloseWaitsForJobs(t *testing.T) {
	s := bundled(t, 1)
	j, err := s.Start(Request{Rows: someRows(13, slices.Repeat([]int{200}, 30)...), K: 1})
	require.NoError(t, err)
	closed := make(chan struct{})
	go func() {
		assert.NoError(t, s.Close())
		assert.True(t, j.Wait(0), "no job was running any more")
		close(closed)
	}()
	rows, err := j.Result()
	require.NoError(t, err)
	assert.Len(t, rows, 30)
	<-closed
	_, err = s.Start(Request{Rows: [][]uint32{{1}}, K: 1})
	assert.ErrorIs(t, err, ErrClosed)
	assert.NoError(t, s.Close())
	_, err = j.Result()
	assert.NoError(t, err, "what was scored stays")
}

// Jobs leave neither goroutines nor memory behind, nor do sessions.
func TestNothingIsLeft(t *testing.T) {
	s := bundled(t, 2)
	rows := someRows(14, 50, 20, 80, 5)
	again := func(n int) {
		for i := range n {
			j, err := s.Start(Request{Rows: rows, K: 8, Keep: everything})
			require.NoError(t, err)
			if i%3 == 2 {
				j.Cancel()
			}
			_, _ = j.Result()
		}
	}
	again(10)
	goroutines, before := runtime.NumGoroutine(), resident(t)
	again(60)
	requireGoroutines(t, goroutines)
	runtime.GC()
	assert.Less(t, resident(t)-before, int64(24<<20), "bytes of growth")

	again = func(n int) {
		for range n {
			p, err := prior.Open(scorertest.BundledPrior(t))
			require.NoError(t, err)
			s, err := Open(p, Options{Library: scorertest.Library(t), Threads: 1})
			require.NoError(t, err)
			score(t, s, Request{Rows: rows[3:], K: 1})
			require.NoError(t, s.Close())
		}
	}
	again(3)
	before = resident(t)
	again(10)
	// A session holds the weights, some 10 MB: ten that stayed would be seen.
	assert.Less(t, resident(t)-before, int64(50<<20), "bytes of growth")
}

// requireGoroutines waits a moment for goroutines that are about to end.
func requireGoroutines(t *testing.T, most int) {
	t.Helper()
	for range 1000 {
		if runtime.NumGoroutine() <= most {
			return
		}
		time.Sleep(time.Millisecond)
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), most, "goroutines")
}

// resident is the process's resident memory.
func resident(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	require.NoError(t, err)
	return pages * int64(os.Getpagesize())
}

// A panic on a job's goroutine ends the job, not the process.
func TestPanicInAJob(t *testing.T) {
	s := bundled(t, 1)
	before := len(s.slots)
	j, err := s.Start(Request{Rows: someRows(15, 3), K: 1})
	require.NoError(t, err)
	<-j.done
	err = j.execute(run{rows: []int{99}, length: 8})
	var panicked *PanicError
	require.ErrorAs(t, err, &panicked)
	assert.Contains(t, err.Error(), "index out of range")
	assert.Contains(t, err.Error(), "job.go")
	assert.Len(t, s.slots, before)
}
