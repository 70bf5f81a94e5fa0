// Package scorer runs a prior through ONNX Runtime: token ids in, ln P of every token and the top-k of the wanted
// positions out. It is safe for concurrent use; several jobs share a scorer's threads.
package scorer

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	ort "github.com/yalue/onnxruntime_go"
	"golang.org/x/sync/semaphore"

	"toedit/editor/prior"
)

// Options for Open.
type Options struct {
	Library string // path of libonnxruntime
	Threads int    // runs that are computed at the same time, one core each; at least 1. A card computes one at a time
	Device  string // "cpu", "cuda" or "cuda:N"; "" is the one that the prior was exported for
	// MemoryLimit bounds what runs take beside the weights, in bytes, about; 0 is no bound. Runs have fewer rows, and wait
	// for each other; a run of a single row is made whatever it takes.
	MemoryLimit int64
}

// Stats is what a scorer has done so far.
type Stats struct {
	Runs      int64 `json:"runs"`
	Positions int64 `json:"positions"` // that were read for a row
	Padded    int64 `json:"padded"`    // that were computed: these and the padding
	Halved    int64 `json:"halved"`    // runs that were cut in two because there was no memory for them
	Waited    int64 `json:"waited"`    // runs of one row that there was memory for only when no other was made
}

// ErrClosed is returned for work on a scorer that was closed.
var ErrClosed = errors.New("the prior is closed; open it again with toedit.Prior(path)")

// Scorer is a prior opened for scoring. On the CPU, Threads runs go through the session at a time, each computed by one
// thread: for the many small matrix products of a batch that beats threads inside one run, and the results cannot depend
// on it. Jobs of several callers share the threads.
type Scorer struct {
	prior   *prior.Prior
	device  device
	shapes  shapes
	slots   chan struct{}       // one token for each run that may be in flight
	memory  *semaphore.Weighted // bytes that they may take together
	limit   int64
	mu      sync.RWMutex // held for reading by running jobs, for writing by Close
	session *ort.DynamicAdvancedSession
	thread  *thread // where runs are made, for a card

	runs, positions, padded, halved, waited atomic.Int64
}

// Open loads the prior's model, after checking that its files are the ones that the fingerprint names.
func Open(p *prior.Prior, opt Options) (*Scorer, error) {
	if opt.Threads < 1 {
		return nil, fmt.Errorf("threads is %d, but must be at least 1", opt.Threads)
	}
	if opt.MemoryLimit < 0 {
		return nil, fmt.Errorf("memory_limit is %d bytes, but must be positive, or 0 for none", opt.MemoryLimit)
	}
	d, err := deviceOf(p, opt.Device)
	if err != nil {
		return nil, err
	}
	if err := p.VerifyModel(); err != nil {
		return nil, err
	}
	if err := openRuntime(opt.Library); err != nil {
		return nil, err
	}
	s := &Scorer{prior: p, device: d, limit: opt.MemoryLimit}
	if s.limit == 0 {
		s.limit = math.MaxInt64
	}
	threads := opt.Threads
	if d.cuda {
		threads, s.thread = 1, newThread()
	}
	s.slots, s.memory = make(chan struct{}, threads), semaphore.NewWeighted(s.limit)
	s.shapes = shapes{context: p.ContextLength, least: p.Graph.MinPositions, fixed: d.cuda,
		memory: s.limit / int64(threads), need: s.need}
	err = s.onThread(func() (err error) {
		s.session, err = openSession(p, d)
		return err
	})
	if err != nil {
		s.thread.close()
		var missing *ErrRuntime
		if errors.As(err, &missing) {
			return nil, err
		}
		return nil, fmt.Errorf("prior %s: ONNX Runtime %s cannot open %s: %w", p.Dir, ort.GetVersion(), prior.ModelFile, err)
	}
	if d.cuda {
		if err := s.warm(); err != nil {
			if strings.Contains(err.Error(), "libcudnn") { // which is looked for when an operator first wants it
				return nil, errors.Join(d.missing(err), s.Close())
			}
			return nil, errors.Join(fmt.Errorf("prior %s: the first runs on %s failed: %w", p.Dir, d, err), s.Close())
		}
	}
	return s, nil
}

// need is about how many bytes a run takes beside the weights.
func (s *Scorer) need(rows, length int) int64 {
	m := s.prior.Memory
	if m.Position == 0 {
		// An export of before: its logits and their softmax, and something for the layers.
		m.Position = 8*int64(s.prior.VocabSize) + 1<<16
	}
	r, l := int64(rows), int64(length)
	return m.Fixed + r*l*m.Position + r*l*l*m.Pair
}

func openSession(p *prior.Prior, d device) (*ort.DynamicAdvancedSession, error) {
	so, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer func() { _ = so.Destroy() }()
	err = errors.Join(
		so.SetIntraOpNumThreads(1),
		so.SetInterOpNumThreads(1),
		so.SetGraphOptimizationLevel(ort.GraphOptimizationLevelEnableAll),
		// Idle threads must not burn the cores that the trainer needs.
		so.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
		so.AddSessionConfigEntry("session.inter_op.allow_spinning", "0"),
		// Errors come back as such. On standard error ONNX Runtime would write every run that is cancelled, or made in halves.
		so.SetLogSeverityLevel(ort.LoggingLevelFatal),
	)
	if err != nil {
		return nil, err
	}
	if d.cuda {
		if err := d.append(so, p.Graph.TF32); err != nil {
			return nil, err
		}
	}
	return ort.NewDynamicAdvancedSession(p.ModelPath(), graphInputs, graphOutputs, so)
}

// The graph's inputs and outputs, version prior.GraphVersion.
var (
	graphInputs  = []string{"input_ids", "k", "keep_low", "keep_high"}
	graphOutputs = []string{"logp", "topk_row", "topk_ids", "topk_logp"}
)

// Threads is the number of runs that may be in flight at a time.
func (s *Scorer) Threads() int { return cap(s.slots) }

// Stats is what the scorer has done so far.
func (s *Scorer) Stats() Stats {
	return Stats{Runs: s.runs.Load(), Positions: s.positions.Load(), Padded: s.padded.Load(), Halved: s.halved.Load(),
		Waited: s.waited.Load()}
}

// Close frees the session once no job is running. Closing twice is harmless.
func (s *Scorer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil {
		return nil
	}
	err := s.onThread(s.session.Destroy)
	s.thread.close()
	s.session, s.thread = nil, nil
	return err
}

// onThread makes a call where the session's calls are made.
func (s *Scorer) onThread(call func() error) error {
	if s.thread == nil {
		return call()
	}
	return s.thread.do(call)
}

// Range is a closed interval of ln P, in float32.
type Range struct{ Low, High float32 }

// Request is what a job scores.
type Request struct {
	Rows [][]uint32 // real tokens only; ids below the vocabulary size
	// Starts are, for each row, where documents begin behind its first one, ascending and inside the row. nil: every row is
	// one document.
	Starts [][]int32
	K      int     // size of each stored top-k, 1 to the prior's K
	Keep   []Range // positions whose top-k is stored; none keeps nothing
}

func (r *Request) validate(p *prior.Prior) error {
	if r.K < 1 || r.K > p.K {
		return fmt.Errorf("k is %d, but prior %s stores 1 to %d; export it with a larger --k", r.K, p.Dir, p.K)
	}
	for i, row := range r.Rows {
		for j, id := range row {
			if int64(id) >= int64(p.VocabSize) {
				return fmt.Errorf("row %s: input_ids[%d] is %d, but the prior's vocabulary ends at %d; use the prior's own tokenizer",
					strconv.Itoa(i), j, id, p.VocabSize-1)
			}
		}
	}
	for i, starts := range r.Starts {
		last := int32(0)
		for _, start := range starts {
			if start <= last || int(start) >= len(r.Rows[i]) {
				return fmt.Errorf("row %d: a document begins at %d; documents must begin one behind the other, inside the row's %d tokens", i, start, len(r.Rows[i]))
			}
			last = start
		}
	}
	return nil
}

// Row is the scores of one row.
type Row struct {
	LogP     []float32 // as long as the row; NaN where not scored
	Unscored int       // how many of them are NaN
	TopPos   []int32   // positions whose top-k is stored, ascending
	TopIDs   []int32   // k for each of them, most probable first
	TopLogP  []float32 // their ln P, float16 values
}

var unscored = float32(math.NaN())
