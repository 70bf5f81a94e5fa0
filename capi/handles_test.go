package capi

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow/go/v17/arrow"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor/prior"
	"toedit/editor/scorer"
	"toedit/editor/scorer/scorertest"
)

// entries are the functions that take one handle, and its kind.
var entries = map[string]struct {
	takes string
	call  func(h uint64) error
}{
	"DescribePrior": {"a prior", func(h uint64) error { _, err := DescribePrior(h); return err }},
	"OpenScorer":    {"a prior", func(h uint64) error { _, err := OpenScorer(h, "/nonexistent", `{"threads": 1}`); return err }},
	"OpenEditor":    {"a prior", func(h uint64) error { _, err := OpenEditor(h, "{}"); return err }},
	"WaitScore":     {"a scoring job", func(h uint64) error { _, err := WaitScore(h, 0); return err }},
	"ScoredTokens":  {"a scoring job", func(h uint64) error { _, err := ScoredTokens(h); return err }},
	"CancelScore":   {"a scoring job", CancelScore},
}

func TestHandlesOfAnotherKind(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	prior := openBundled(t)
	for _, e := range entries {
		h, is := handle, "an editor"
		if e.takes == "a scoring job" {
			h, is = prior, "a prior"
		}
		requireKind(t, e.call(h), Closed, fmt.Sprintf("%#x is %s, not %s", h, is, e.takes))
	}
	_, err := call(t, prior, 0, 0, goodBatch(t, print))
	requireKind(t, err, Closed, "is a prior, not an editor")
	b := goodBatch(t, print)
	_, err = StartScore(prior, addr(b.array.cArray), addr(b.schema.cSchema), `{"k": 1}`)
	requireKind(t, err, Closed, "is a prior, not a scorer")
	assert.EqualValues(t, 1, *b.arrayReleases)
	out, schema := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
	fill(out)
	fill(schema)
	requireKind(t, TakeScore(prior, addr(&out[0]), addr(&schema[0])), Closed, "is a prior, not a scoring job")
	assert.Equal(t, cArray{}, out[0])
	assert.Equal(t, cSchema{}, schema[0])
}

func TestHandlesThatAreClosedOrForeign(t *testing.T) {
	trackUsage(t)
	closed, err := OpenPrior(scorertest.BundledPrior(t), "")
	require.NoError(t, err)
	require.NoError(t, Close(closed))
	pid := uint64(os.Getpid())
	for h, parts := range map[uint64][]string{
		closed:                {"closed or was never opened", "open it again"},
		0:                     {"closed or was never opened"},
		12345:                 {"closed or was never opened"},
		pid<<32 | 0xFFFFFFF0:  {"closed or was never opened"},
		(pid + 1) << 32:       {fmt.Sprintf("belongs to process %d and this is process %d", pid+1, pid), "open it again"},
		closed + 1<<32:        {fmt.Sprintf("belongs to process %d", pid+1)},
		0xFFFFFFFF<<32 | 0x01: {"belongs to process 4294967295"},
	} {
		for _, e := range entries {
			requireKind(t, e.call(h), Closed, parts...)
		}
		requireKind(t, Close(h), Closed, parts...)
		_, err := call(t, h, 0, 0, goodBatch(t, "x"))
		requireKind(t, err, Closed, parts...)
	}
}

func TestHandlesAreNeverUsedAgain(t *testing.T) {
	trackUsage(t)
	seen := map[uint64]bool{}
	for range 20 {
		h, err := OpenPrior(scorertest.BundledPrior(t), "")
		require.NoError(t, err)
		require.False(t, seen[h])
		seen[h] = true
		require.NoError(t, Close(h))
	}
}

// An editor needs neither the prior's handle nor its folder once it is open.
func TestEditorOutlivesItsPrior(t *testing.T) {
	trackUsage(t)
	prior, err := OpenPrior(scorertest.BundledPrior(t), "")
	require.NoError(t, err)
	print := fingerprint(t, prior)
	handle := openPolicy(t, prior, eager)
	require.NoError(t, Close(prior))
	mustEdit(t, handle, 0, 0, goodBatch(t, print))
}

func TestDescribePrior(t *testing.T) {
	trackUsage(t)
	h := openBundled(t)
	text, err := DescribePrior(h)
	require.NoError(t, err)
	p, err := lookup[*prior.Prior](h)
	require.NoError(t, err)
	require.Contains(t, string(p.Check), "mean_abs_dlogp")
	assert.JSONEq(t, fmt.Sprintf(`{"name": "toedit-builtin", "fingerprint": %q, "dtype": "int8", "device": "cpu", "context_length": 512,
		"vocab_size": 4096, "tokenizer_size": 4096, "special_ids": [0], "k": 64, "bos": {"rule": "always", "id": 0},
		"windows": "rolling", "min_context": 256, "cross_documents": false, "check": %s}`, fingerprint(t, h), p.Check), text)
	none := openFolder(t, scorertest.ChangedPrior(t, func(s map[string]any) { delete(s, "special_ids") }))
	text, err = DescribePrior(none)
	require.NoError(t, err)
	assert.Contains(t, text, `"special_ids":[]`)
}

// All functions may be called from any thread at any time.
func TestConcurrentUse(t *testing.T) {
	trackUsage(t)
	handle, print := bundledEditor(t, eager)
	r := newRand(31)
	rows := randomRows(r, 64, 3, 0, 100)
	scores := allScores(r, rows, print, 4)
	want, _, _ := reference{rows: rows, scores: scores}.edit(t, eager, 1, 2)
	var threads sync.WaitGroup
	for range 6 {
		// Arrow memory of tests is freed at their end, which only the test's own goroutine may arrange.
		var batches []*foreignBatch
		for range 15 {
			batches = append(batches, newForeign(t, structOfColumns(t,
				namedColumn{"input_ids", fromJSON(t, arrow.ListOf(i64), asJSON(t, rows))}, namedColumn{"scores", scoresArray(scores)})))
		}
		arrays, schemas, totals := cSlice[cArray](t, 2*len(batches)), cSlice[cSchema](t, 2*len(batches)), cSlice[counts](t, 1)
		threads.Go(func() {
			for i, b := range batches {
				assert.NoError(t, Edit(handle, 1, 2, 0, EditArgs{
					Batch: addr(b.array.cArray), Schema: addr(b.schema.cSchema),
					Out: addr(&arrays[2*i]), OutSchema: addr(&schemas[2*i]), Log: addr(&arrays[2*i+1]), LogSchema: addr(&schemas[2*i+1]),
					Counts: addr(&totals[0])}))
				h, err := OpenPrior(scorertest.BundledPrior(t), "")
				assert.NoError(t, err)
				assert.NoError(t, Close(h))
				GetUsage()
			}
		})
		t.Cleanup(func() {
			for i := range arrays {
				releaseBoth(addr(&arrays[i]), addr(&schemas[i]))
			}
		})
		defer func() {
			for i := range batches {
				out := importOut(t, &arrays[2*i], &schemas[2*i])
				assert.Equal(t, want, values(t, columnOf(t, out, "input_ids")))
			}
		}()
	}
	threads.Wait()
}

// inProcessOfItsOwn runs a test that cannot be undone in a child process. It is true in the child.
func inProcessOfItsOwn(t *testing.T) bool {
	const inside = "TOEDIT_TEST_PROCESS"
	if os.Getenv(inside) != "" {
		return true
	}
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), inside+"=1")
	out, err := child.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return false
}

// A panic on a scoring job's goroutine is one like any other.
func TestPanicInAJobPoisons(t *testing.T) {
	if !inProcessOfItsOwn(t) {
		return
	}
	err := guarded(func() error {
		return fmt.Errorf("taking scores: %w", &scorer.PanicError{Value: "boom", Stack: []byte("where it happened")})
	})
	requireKind(t, err, Internal, "boom", "where it happened", "report this")
	_, again := OpenPrior(scorertest.BundledPrior(t), "")
	requireKind(t, again, Internal)
	assert.Equal(t, err.Error(), again.Error())
}

// After a panic nothing is known about the library's state: it answers nothing but that, until the process ends. What it
// passed out before can still be released, and what is passed in is.
func TestPanicPoisons(t *testing.T) {
	if !inProcessOfItsOwn(t) {
		return
	}
	prior, err := OpenPrior(scorertest.BundledPrior(t), "")
	require.NoError(t, err)
	print := fingerprint(t, prior)
	handle, err := OpenEditor(prior, asJSON(t, eager))
	require.NoError(t, err)
	b := goodBatch(t, print)
	arrays, schemas, totals := cSlice[cArray](t, 2), cSlice[cSchema](t, 2), cSlice[counts](t, 1)
	require.NoError(t, Edit(handle, 0, 0, 0, EditArgs{
		Batch: addr(b.array.cArray), Schema: addr(b.schema.cSchema), Out: addr(&arrays[0]), OutSchema: addr(&schemas[0]),
		Log: addr(&arrays[1]), LogSchema: addr(&schemas[1]), Counts: addr(&totals[0]),
	}))
	require.Positive(t, GetUsage().AllocatedBytes)

	requireKind(t, PanicForTest("please"), Input, "poison this process")
	_, err = DescribePrior(prior)
	require.NoError(t, err)

	first := PanicForTest("poison this process")
	requireKind(t, first, Internal, "a panic on purpose", fmt.Sprintf("process %d", os.Getpid()), "report this", "status.go")
	after := map[string]func() error{
		"OpenPrior":   func() error { _, err := OpenPrior(scorertest.BundledPrior(t), ""); return err },
		"Close":       func() error { return Close(prior) },
		"AddCounters": func() error { return AddCounters(addr(&totals[0].Rows), addr(&totals[0].Rows), 1) },
		"Edit":        func() error { _, err := call(t, handle, 0, 0, goodBatch(t, print)); return err },
		"StartScore": func() error {
			b := goodBatch(t, print)
			_, err := StartScore(prior, addr(b.array.cArray), addr(b.schema.cSchema), "{}")
			assert.EqualValues(t, 1, *b.arrayReleases)
			assert.EqualValues(t, 1, *b.schemaReleases)
			return err
		},
		"TakeScore": func() error {
			a, s := cSlice[cArray](t, 1), cSlice[cSchema](t, 1)
			fill(a)
			fill(s)
			err := TakeScore(prior, addr(&a[0]), addr(&s[0]))
			assert.Equal(t, cArray{}, a[0])
			assert.Equal(t, cSchema{}, s[0])
			return err
		},
		"PanicForTest": func() error { return PanicForTest("poison this process") },
	}
	for name, e := range entries {
		after[name] = func() error { return e.call(prior) }
	}
	for name, do := range after {
		err := do()
		requireKind(t, err, Internal)
		assert.Equal(t, first.Error(), err.Error(), "%s says what came first", name)
	}
	for i := range arrays {
		releaseBoth(addr(&arrays[i]), addr(&schemas[i]))
	}
	assert.Equal(t, Usage{Handles: 2}, GetUsage())
	assert.True(t, strings.HasPrefix(first.Error(), "internal: toedit failed"))
}
