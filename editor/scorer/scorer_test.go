package scorer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
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
	ort "github.com/yalue/onnxruntime_go"

	"toedit/editor/prior"
	"toedit/editor/scorer/scorertest"
)

var everything = []Range{{Low: float32(math.Inf(-1)), High: 0}}

func open(t *testing.T, folder string, threads int) *Scorer {
	t.Helper()
	return openAs(t, folder, prior.Reading{}, Options{Threads: threads})
}

func openAs(t *testing.T, folder string, reading prior.Reading, options Options) *Scorer {
	t.Helper()
	options.Library = scorertest.Library(t)
	p, err := prior.OpenAs(folder, reading)
	require.NoError(t, err)
	s, err := Open(p, options)
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

// Without windows, what lies beyond the context stays unscored; what lies within it is scored as if nothing came after.
func TestRowsLongerThanTheContextWithoutWindows(t *testing.T) {
	const context = 32
	s := openAs(t, scorertest.ChangedPrior(t, func(s map[string]any) { s["context_length"] = context }),
		prior.Reading{Windows: prior.WindowsOff}, Options{Threads: 1})
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

// Each token of a long row has the score that its window alone gives it.
func TestRollingWindows(t *testing.T) {
	const context, least = 32, 9
	folder := scorertest.ChangedPrior(t, func(s map[string]any) { s["context_length"] = context })
	s := openAs(t, folder, prior.Reading{MinContext: least}, Options{Threads: 2})
	long := someRows(6, 107)[0]
	got := score(t, s, Request{Rows: [][]uint32{long, someRows(8, 40)[0]}, K: 2, Keep: everything})[0]
	assert.Zero(t, got.Unscored)
	require.Len(t, got.TopPos, len(long))
	windows := windowsOf(s.prior, long)
	require.Len(t, windows, 5)
	for _, w := range windows {
		alone := score(t, s, Request{Rows: [][]uint32{long[w.start:w.end]}, K: 2, Keep: everything})[0]
		assert.Equal(t, alone.LogP[w.first-w.start:], got.LogP[w.first:w.end])
		assert.Equal(t, alone.TopIDs[2*(w.first-w.start):], got.TopIDs[2*w.first:2*w.end])
		assert.Equal(t, alone.TopLogP[2*(w.first-w.start):], got.TopLogP[2*w.first:2*w.end])
	}
	for i, pos := range got.TopPos {
		require.EqualValues(t, i, pos)
	}
}

// The documents of a packed row have the scores that they have alone; only with CrossDocuments do they see each other.
func TestPackedRows(t *testing.T) {
	const context = 32
	folder := scorertest.ChangedPrior(t, func(s map[string]any) { s["context_length"] = context })
	docs := someRows(9, 20, 1, 50, 7)
	var packed []uint32
	var starts []int32
	for i, doc := range docs {
		if i > 0 {
			starts = append(starts, int32(len(packed)))
		}
		packed = append(packed, doc...)
	}
	req := Request{Rows: [][]uint32{packed, docs[0]}, Starts: [][]int32{starts, nil}, K: 2, Keep: everything}
	s := open(t, folder, 2)
	got, alone := score(t, s, req)[0], score(t, s, Request{Rows: docs, K: 2, Keep: everything})
	at := 0
	for i, doc := range docs {
		assert.Equal(t, alone[i].LogP, got.LogP[at:at+len(doc)])
		assert.Equal(t, alone[i].TopIDs, got.TopIDs[2*at:2*(at+len(doc))])
		at += len(doc)
	}
	cross := openAs(t, folder, prior.Reading{CrossDocuments: true}, Options{Threads: 1})
	whole := score(t, cross, Request{Rows: [][]uint32{packed}, K: 2, Keep: everything})[0]
	requireSame(t, whole, score(t, cross, req)[0], "one document")
	assert.NotEqual(t, got.LogP, whole.LogP)
	for text, starts := range map[string][]int32{"a document begins at 0": {0}, "begins at 78": {78}, "begins at 3;": {5, 3}} {
		_, err := s.Start(Request{Rows: [][]uint32{packed}, Starts: [][]int32{starts}, K: 1})
		assert.ErrorContains(t, err, text)
	}
}

// A bound on memory changes how rows are run, and no score; the shapes of a card neither, on the CPU.
func TestOtherShapesSameScores(t *testing.T) {
	rows := someRows(12, 100, 90, 33, 60, 5, 70, 100, 12)
	req := Request{Rows: rows, K: 3, Keep: everything}
	free := bundled(t, 2)
	want := score(t, free, req)
	assert.Zero(t, free.Stats().Halved)
	bound := openAs(t, scorertest.BundledPrior(t), prior.Reading{}, Options{Threads: 2, MemoryLimit: 1})
	least := bundled(t, 1)
	least.shapes.least = 72
	card := bundled(t, 1)
	card.shapes.fixed, card.thread = true, newThread()
	require.NoError(t, card.warm())
	for name, s := range map[string]*Scorer{"memory": bound, "least": least, "card": card} {
		got := score(t, s, req)
		for i := range rows {
			requireSame(t, want[i], got[i], name)
		}
	}
	assert.EqualValues(t, len(rows), bound.Stats().Runs, "one row at a time")
	assert.Less(t, free.Stats().Runs, bound.Stats().Runs)
	assert.Equal(t, free.Stats().Positions, bound.Stats().Positions)
	assert.GreaterOrEqual(t, free.Stats().Padded, free.Stats().Positions)
	assert.EqualValues(t, 2*cudaBudget, card.Stats().Padded, "two buckets, filled up")
}

// Runs that there is no memory for are made in halves; the scores are the same.
func TestOutOfMemory(t *testing.T) {
	rows := someRows(13, 40, 40, 40, 40, 40)
	s := bundled(t, 1)
	want := score(t, s, Request{Rows: rows, K: 3, Keep: everything})
	j := &Job{scorer: s, req: Request{Rows: rows, K: 3, Keep: everything}, active: map[*ort.RunOptions]struct{}{}}
	j.begin()
	r := run{length: 40}
	for i, row := range rows {
		j.pieces = append(j.pieces, piecesOf(s.prior, i, row, nil)...)
		logp := make([]float32, len(row))
		j.rows = append(j.rows, Row{LogP: logp})
		r.pieces = append(r.pieces, i)
	}
	r.batch, j.kept = len(rows), make([]topK, len(rows))
	// As if three rows were too many at once.
	var batches []int
	exhausted := func(r run) error {
		batches = append(batches, r.batch)
		if r.batch > 2 {
			return errors.New("Failed to allocate memory for requested buffer of size 1")
		}
		return j.compute(r, func(t *tensors) error { return j.store(r, t) })
	}
	unasked := func() error { panic("nothing ran out of memory for a single row") }
	require.NoError(t, j.halving(r, exhausted, unasked))
	assert.Equal(t, []int{5, 3, 2, 1, 2}, batches)
	assert.EqualValues(t, 2, s.Stats().Halved)
	j.assemble()
	for i := range rows {
		requireSame(t, want[i], j.rows[i], "halved")
	}
	other := errors.New("another error")
	assert.Equal(t, other, j.halving(r, func(run) error { return other }, unasked))
}

// A single row that there is no memory for beside other runs is made when these have ended.
func TestOutOfMemoryForASingleRow(t *testing.T) {
	s := bundled(t, 2)
	single := run{pieces: []int{0}, length: 40, batch: 1}
	newJob := func() *Job {
		j := &Job{scorer: s}
		j.begin()
		return j
	}
	var order []string
	alone := func() error {
		order = append(order, "alone")
		return nil
	}
	// The first attempts fail.
	failing := func(attempts int) func(run) error {
		return func(run) error {
			order = append(order, "run")
			if attempts--; attempts >= 0 {
				return errors.New("std::bad_alloc")
			}
			return nil
		}
	}
	require.NoError(t, newJob().halving(single, failing(1), alone))
	assert.Equal(t, []string{"run", "alone", "run"}, order)
	assert.Zero(t, s.Stats().Halved)
	assert.EqualValues(t, 1, s.Stats().Waited)
	err := newJob().halving(single, failing(2), alone)
	assert.ErrorContains(t, err, "no memory for a single row of 40 tokens")
	cancelled := func() error { return ErrCancelled }
	assert.Equal(t, ErrCancelled, newJob().halving(single, failing(1), cancelled))
}

// The texts are ONNX Runtime's own, with its arena and without, and CUDA's.
func TestOutOfMemoryIsKnownByItsText(t *testing.T) {
	for text, want := range map[string]bool{
		"bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 1073741824": true,
		"Non-zero status code returned while running Expand node. Name:'' Status Message: std::bad_alloc":                                                   true,
		"CUDA failure 2: out of memory ; GPU=0":                                       true,
		"CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0":                        true,
		"Non-zero status code returned while running MatMul node: invalid dimensions": false,
	} {
		assert.Equal(t, want, outOfMemory(fmt.Errorf("running: %w", errors.New(text))), text)
	}
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
	assert.ErrorContains(t, openWith(cuda, Options{Library: library, Threads: 1, Device: "cpu"}), "cannot run on the CPU; export it again with --dtype fp32 or int8")
	// The library of the package for CPUs has no provider for cards: that is an error, never a run on the CPU.
	var lacking *ErrRuntime
	err := openWith(cuda, Options{Library: library, Threads: 1, Device: "cuda:1"})
	require.ErrorAs(t, err, &lacking)
	assert.ErrorContains(t, err, "ONNX Runtime cannot use cuda:1")
	assert.ErrorContains(t, err, "pip install 'toedit[cuda]'")
	for device, text := range map[string]string{
		"cuda":   "was exported for the CPU (int8) and cannot run on cuda; export it again with --dtype bf16 or fp16",
		"cuda:1": "cannot run on cuda:1",
		"cuda:x": `device is "cuda:x"`, "cuda:-1": `device is "cuda:-1"`, "gpu": `device is "gpu", but must be "cpu", "cuda" or "cuda:N"`, "cpu:0": `device is "cpu:0"`,
	} {
		assert.ErrorContains(t, openWith(bundledPrior, Options{Library: library, Threads: 1, Device: device}), text)
	}
	assert.ErrorContains(t, openWith(bundledPrior, Options{Library: library, Threads: 1, MemoryLimit: -1}), "memory_limit is -1")
	elsewhere := scorertest.ChangedPrior(t, func(s map[string]any) { s["device"] = "elsewhere" })
	assert.ErrorContains(t, openWith(elsewhere, Options{Library: library, Threads: 1}), "has no graph")
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
	err = openWith(broken, Options{Library: library, Threads: 1})
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
	err = j.execute(run{pieces: []int{99}, length: 8, batch: 1})
	var panicked *PanicError
	require.ErrorAs(t, err, &panicked)
	assert.Contains(t, err.Error(), "index out of range")
	assert.Contains(t, err.Error(), "job.go")
	assert.Len(t, s.slots, before)
}
