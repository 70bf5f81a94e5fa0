package capi

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"toedit/editor"
	"toedit/editor/prior"
	"toedit/editor/scorer"
)

// OpenPrior opens a prior folder and returns its handle. reading says how documents are read, as JSON (prior.Reading); "" is
// the default.
func OpenPrior(dir, reading string) (handle uint64, err error) {
	err = guarded(func() error {
		if dir == "" {
			return fail(Prior, "the prior folder's path is empty")
		}
		r, err := prior.ParseReading(reading)
		if err != nil {
			return &Error{Input, err}
		}
		p, err := prior.OpenAs(dir, r)
		if errors.As(err, new(*prior.ReadingError)) {
			return &Error{Input, err}
		} else if err != nil {
			return &Error{Prior, err}
		}
		handle = handles.add(p)
		return nil
	})
	return handle, err
}

// PriorInfo is what callers may want to know of a prior, as JSON.
type PriorInfo struct {
	Name           string    `json:"name"`
	Fingerprint    string    `json:"fingerprint"`
	DType          string    `json:"dtype"`
	Device         string    `json:"device"`
	ContextLength  int       `json:"context_length"`
	VocabSize      int       `json:"vocab_size"`
	TokenizerSize  int       `json:"tokenizer_size"`
	SpecialIDs     []uint32  `json:"special_ids"`
	K              int       `json:"k"`
	BOS            prior.BOS `json:"bos"`
	Windows        string    `json:"windows"`
	MinContext     int       `json:"min_context"`
	CrossDocuments bool      `json:"cross_documents"`
	// Check is how far the prior's scores are from the model's, as its export measured it.
	Check json.RawMessage `json:"check,omitempty"`
}

// DescribePrior returns a prior's PriorInfo as JSON.
func DescribePrior(handle uint64) (info string, err error) {
	err = guarded(func() error {
		p, err := lookup[*prior.Prior](handle)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(PriorInfo{p.Name, p.Fingerprint(), p.DType, p.Device, p.ContextLength, p.VocabSize, p.TokenizerSize, p.SpecialIDs, p.K,
			p.BOS, p.Reading.Windows, p.Reading.MinContext, p.Reading.CrossDocuments, p.Check})
		info = string(raw)
		return err
	})
	return info, err
}

// openScorer is what a scorer's handle stands for.
type openScorer struct {
	*scorer.Scorer
	prior *prior.Prior
}

// scorerOptions are a scorer's settings, as JSON.
type scorerOptions struct {
	Threads     int    `json:"threads"`
	Device      string `json:"device"`       // "cpu", "cuda", "cuda:N"; "" is the prior's own
	MemoryLimit int64  `json:"memory_limit"` // bytes; 0 is none
}

// OpenScorer loads a prior's model with the ONNX Runtime library at path. options is JSON: {"threads": 1, "device": "cpu",
// "memory_limit": 0}, of which threads must be there.
func OpenScorer(priorHandle uint64, library, options string) (handle uint64, err error) {
	err = guarded(func() error {
		p, err := lookup[*prior.Prior](priorHandle)
		if err != nil {
			return err
		}
		var o scorerOptions
		if err := parseStrictly(options, &o, `{"threads": 1, "device": "cpu", "memory_limit": 0}`); err != nil {
			return err
		}
		if o.Threads < 1 {
			return fail(Input, "threads is %d, but must be at least 1", o.Threads)
		}
		if o.MemoryLimit < 0 {
			return fail(Input, "memory_limit is %d bytes, but must be positive, or 0 for none", o.MemoryLimit)
		}
		if library == "" {
			return fail(Runtime, "the path of the ONNX Runtime library is empty")
		}
		restore := keepSignals()
		s, err := scorer.Open(p, scorer.Options{Library: library, Threads: o.Threads, Device: o.Device, MemoryLimit: o.MemoryLimit})
		restore()
		if err != nil {
			var runtime *scorer.ErrRuntime
			if errors.As(err, &runtime) {
				return &Error{Runtime, err}
			}
			return &Error{Prior, err}
		}
		handle = handles.add(&openScorer{s, p})
		return nil
	})
	return handle, err
}

// ScorerStats is what a scorer has done so far, as JSON (scorer.Stats).
func ScorerStats(handle uint64) (stats string, err error) {
	err = guarded(func() error {
		s, err := lookup[*openScorer](handle)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(s.Stats())
		stats = string(raw)
		return err
	})
	return stats, err
}

// Close closes a handle of a prior, scorer, editor or tokenizer. A job is ended by Take or Cancel.
func Close(handle uint64) error {
	return guarded(func() error {
		if _, err := lookup[*job](handle); err == nil {
			return fail(Input, "handle %#x is a scoring job; it is ended by taking its result or cancelling it", handle)
		}
		object, err := handles.remove(handle)
		if err != nil {
			return err
		}
		if s, ok := object.(*openScorer); ok {
			return s.Close()
		}
		return nil
	})
}

// scoreOptions are a job's settings, as JSON. Keep holds closed ranges of P whose top-k is stored; SplitAfter is the id that
// ends a document inside a row.
type scoreOptions struct {
	K          int          `json:"k"`
	Keep       [][2]float64 `json:"keep"`
	SplitAfter *uint32      `json:"split_after"`
}

// parseStrictly reads settings: a misspelt one would otherwise be ignored in silence.
func parseStrictly(text string, into any, like string) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fail(Input, `options %q are not like %s: %v`, text, like, err)
	}
	if d.More() {
		return fail(Input, "options %q go on after their end", text)
	}
	return nil
}

// ranges turns ranges of P into ranges of float32 ln P that hold exactly the same values.
func (o *scoreOptions) ranges() ([]scorer.Range, error) {
	out := make([]scorer.Range, 0, len(o.Keep))
	for _, r := range o.Keep {
		if !(r[0] >= 0 && r[0] <= r[1] && r[1] <= 1) {
			return nil, fail(Input, "keep: [%v, %v] is not a range of P; it must have 0 <= low <= high <= 1", r[0], r[1])
		}
		out = append(out, scorer.Range{Low: editor.Log32Bound(r[0]), High: upperLog32(r[1])})
	}
	return out, nil
}

// upperLog32 is the largest float32 that is at most ln(p).
func upperLog32(p float64) float32 {
	ln := math.Log(p)
	v := float32(ln)
	if float64(v) > ln {
		v = math.Nextafter32(v, float32(math.Inf(-1)))
	}
	return v
}

// job is a scoring job and what is needed to make its scores column.
type job struct {
	*scorer.Job
	hashes      []uint64
	k           int
	fingerprint string
}

// StartScore begins to score the batch's input_ids (its real tokens, where it has an attention_mask; each of its documents by
// itself, where one of packedColumns is there). The batch has been copied and released when this returns.
func StartScore(scorerHandle, batch, schema Address, options string) (handle uint64, err error) {
	defer releaseBoth(batch, schema)
	err = guarded(func() error {
		b, err := importBatch(batch, schema)
		if err != nil {
			return err
		}
		s, err := lookup[*openScorer](scorerHandle)
		if err != nil {
			return err
		}
		var o scoreOptions
		if err := parseStrictly(options, &o, `{"k": 8, "keep": [[0.9, 1]]}`); err != nil {
			return err
		}
		keep, err := o.ranges()
		if err != nil {
			return err
		}
		if err := b.only(append([]string{"input_ids", "attention_mask"}, packedColumns...)...); err != nil {
			return err
		}
		rows, err := copyRows(b, s.prior.VocabSize, o.SplitAfter)
		if err != nil {
			return err
		}
		j, err := s.Start(scorer.Request{Rows: rows.ids, Starts: rows.starts, K: o.K, Keep: keep})
		if errors.Is(err, scorer.ErrClosed) {
			return &Error{Closed, err}
		} else if err != nil {
			return &Error{Input, err}
		}
		handle = handles.add(&job{j, rows.hashes, o.K, s.prior.Fingerprint()})
		return nil
	})
	return handle, err
}

// copiedRows are a batch's real tokens, their hashes, and where documents begin in them (nil: every row is one).
type copiedRows struct {
	ids    [][]uint32
	hashes []uint64
	starts [][]int32
}

// copyRows copies the batch's real tokens, hashes them, and finds their documents.
func copyRows(b *arrowBatch, vocabulary int, splitAfter *uint32) (*copiedRows, error) {
	rows := &copiedRows{ids: make([][]uint32, b.rows), hashes: make([]uint64, b.rows)}
	return rows, eachRow(b, vocabulary, splitAfter, func(i int, ids []uint32, starts []int32) error {
		rows.ids[i] = append([]uint32(nil), ids...)
		rows.hashes[i] = editor.HashBytes(littleEndian(ids)).Lo
		if len(starts) > 0 {
			if rows.starts == nil {
				rows.starts = make([][]int32, b.rows)
			}
			rows.starts[i] = starts
		}
		return nil
	})
}

// eachRow calls do with each row's real tokens, whose memory is used again for the next one, and where documents begin behind
// the row's first one.
func eachRow(b *arrowBatch, vocabulary int, splitAfter *uint32, do func(i int, ids []uint32, starts []int32) error) error {
	ids, err := b.tokenColumn()
	if ids == nil || err != nil {
		return err
	}
	mask, err := b.flags("attention_mask", ids)
	if err != nil {
		return err
	}
	packed, err := newBoundaries(b, ids, splitAfter)
	if err != nil {
		return err
	}
	read, err := ids.rowReader(mask, vocabulary)
	if err != nil {
		return err
	}
	var d document
	for i := range b.rows {
		if err := read(&d, i); err != nil {
			return err
		}
		starts, err := packed.starts(i, &d)
		if err != nil {
			return err
		}
		if err := do(i, d.ids, starts); err != nil {
			return err
		}
	}
	return nil
}

// WaitScore waits at most the given time for a job; true once it is done.
func WaitScore(handle uint64, milliseconds int) (done bool, err error) {
	err = guarded(func() error {
		j, err := lookup[*job](handle)
		if err != nil {
			return err
		}
		done = j.Wait(time.Duration(milliseconds) * time.Millisecond)
		return nil
	})
	return done, err
}

// ScoredTokens is how many tokens a job has scored so far.
func ScoredTokens(handle uint64) (n int64, err error) {
	err = guarded(func() error {
		j, err := lookup[*job](handle)
		if err == nil {
			n = j.Scored()
		}
		return err
	})
	return n, err
}

// CancelScore ends a job, whether done or not. When it returns, nothing of the job is in use.
func CancelScore(handle uint64) error {
	return guarded(func() error {
		j, err := lookup[*job](handle)
		if err != nil {
			return err
		}
		j.Cancel()
		_, err = handles.remove(handle)
		return err
	})
}

// TakeScore waits for a job, fills out with its scores column, and ends it.
func TakeScore(handle uint64, out, outSchema Address) error {
	missing := zeroOut(out, outSchema)
	return guarded(func() error {
		if missing != nil {
			return missing
		}
		j, err := lookup[*job](handle)
		if err != nil {
			return err
		}
		rows, err := j.Result()
		if _, gone := handles.remove(handle); gone != nil {
			return gone
		}
		var panicked *scorer.PanicError
		switch {
		case errors.Is(err, scorer.ErrCancelled):
			return &Error{Cancelled, err}
		case errors.As(err, &panicked):
			return err
		case err != nil:
			return &Error{Runtime, err}
		}
		tokens := 0
		for i := range rows {
			tokens += max(len(rows[i].LogP), len(rows[i].TopPos)*j.k, len(j.fingerprint))
		}
		if tokens > math.MaxInt32 {
			return fail(Input, "a batch with %d values is too large for list columns, which hold %d; score fewer rows at a time", tokens, math.MaxInt32)
		}
		return export(newScores(rows, j.hashes, j.k, j.fingerprint), out, outSchema)
	})
}
