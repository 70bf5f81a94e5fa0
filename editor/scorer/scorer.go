// Package scorer runs a prior through ONNX Runtime: token ids in, ln P of every token and the top-k of the wanted
// positions out. It is safe for concurrent use; several jobs share a scorer's threads.
package scorer

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"toedit/editor/prior"
)

// Options for Open.
type Options struct {
	Library string // path of libonnxruntime
	Threads int    // runs that are computed at the same time, one core each; at least 1
}

// ErrClosed is returned for work on a scorer that was closed.
var ErrClosed = errors.New("the prior is closed; open it again with toedit.Prior(path)")

// Scorer is a prior opened for scoring. Threads runs go through the session at a time, each computed by one thread:
// for the many small matrix products of a batch that beats threads inside one run, and the results cannot depend on it.
type Scorer struct {
	prior   *prior.Prior
	slots   chan struct{} // one token for each run that may be in flight
	mu      sync.RWMutex  // held for reading by running jobs, for writing by Close
	session *ort.DynamicAdvancedSession
}

// Open loads the prior's model, after checking that its files are the ones that the fingerprint names.
func Open(p *prior.Prior, opt Options) (*Scorer, error) {
	if opt.Threads < 1 {
		return nil, fmt.Errorf("threads is %d, but must be at least 1", opt.Threads)
	}
	if p.Device != "cpu" {
		return nil, fmt.Errorf("prior %s was exported for %s and this is the CPU; export it again with --dtype fp32 or int8", p.Dir, p.Device)
	}
	if err := p.VerifyModel(); err != nil {
		return nil, err
	}
	if err := openRuntime(opt.Library); err != nil {
		return nil, err
	}
	session, err := openSession(p)
	if err != nil {
		return nil, fmt.Errorf("prior %s: ONNX Runtime %s cannot open %s: %w", p.Dir, ort.GetVersion(), prior.ModelFile, err)
	}
	return &Scorer{prior: p, slots: make(chan struct{}, opt.Threads), session: session}, nil
}

func openSession(p *prior.Prior) (*ort.DynamicAdvancedSession, error) {
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
	)
	if err != nil {
		return nil, err
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

// Close frees the session once no job is running. Closing twice is harmless.
func (s *Scorer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil {
		return nil
	}
	err := s.session.Destroy()
	s.session = nil
	return err
}

// Range is a closed interval of ln P, in float32.
type Range struct{ Low, High float32 }

// Request is what a job scores.
type Request struct {
	Rows [][]uint32 // real tokens only; ids below the vocabulary size
	K    int        // size of each stored top-k, 1 to the prior's K
	Keep []Range    // positions whose top-k is stored; none keeps nothing
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

// layout is how a row goes into the model.
type layout struct {
	prefix    bool // the BOS id is put in front
	positions int  // positions that the model reads: its inputs without the last token
}

// layoutOf decides from the row alone, so that a row's scores never depend on its batch. Tokens that do not fit the
// context stay unscored.
func layoutOf(p *prior.Prior, row []uint32) layout {
	l := layout{prefix: p.BOS.Rule == "always" && len(row) > 0 && row[0] != *p.BOS.ID}
	inputs := len(row)
	if l.prefix {
		inputs++
	}
	l.positions = min(max(inputs-1, 0), p.ContextLength)
	return l
}

var unscored = float32(math.NaN())
