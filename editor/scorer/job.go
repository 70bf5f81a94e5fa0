package scorer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	ort "github.com/yalue/onnxruntime_go"
)

// ErrCancelled is the result of a job that was cancelled.
var ErrCancelled = errors.New("scoring was cancelled")

// Job is one request on its way through the model. It runs on its own goroutines; the caller waits in slices (so that
// Python can look for Ctrl-C between them), then takes the result, or cancels.
type Job struct {
	scorer  *Scorer
	req     Request
	layouts []layout
	rows    []Row

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when every run has ended and every buffer is out of use
	scored atomic.Int64  // tokens scored so far

	mu     sync.Mutex
	active map[*ort.RunOptions]struct{} // runs inside ONNX Runtime, to be terminated by Cancel
	err    error                        // the first error
	whole  bool                         // every run was stored
}

// Start begins to score. The request's rows are read until the job is done.
func (s *Scorer) Start(req Request) (*Job, error) {
	if err := req.validate(s.prior); err != nil {
		return nil, err
	}
	s.mu.RLock() // until the job is done: Close waits for it
	if s.session == nil {
		s.mu.RUnlock()
		return nil, ErrClosed
	}
	j := &Job{scorer: s, req: req, done: make(chan struct{}), active: map[*ort.RunOptions]struct{}{}}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	j.layouts = make([]layout, len(req.Rows))
	j.rows = make([]Row, len(req.Rows))
	positions := make([]int, len(req.Rows))
	for i, row := range req.Rows {
		j.layouts[i] = layoutOf(s.prior, row)
		positions[i] = j.layouts[i].positions
		logp := make([]float32, len(row))
		for t := range logp {
			logp[t] = unscored
		}
		j.rows[i].LogP = logp
	}
	runs, _ := planRuns(positions, s.prior.ContextLength)
	go j.loop(runs)
	return j, nil
}

// loop hands the runs to as many goroutines as the scorer has threads.
func (j *Job) loop(runs []run) {
	defer close(j.done)
	defer j.scorer.mu.RUnlock()
	next := make(chan run)
	var workers sync.WaitGroup
	for range min(j.scorer.Threads(), len(runs)) {
		workers.Go(func() {
			for r := range next {
				if err := j.execute(r); err != nil {
					j.fail(err)
				}
			}
		})
	}
	for _, r := range runs {
		select {
		case next <- r:
		case <-j.ctx.Done():
		}
		if j.ctx.Err() != nil {
			break
		}
	}
	close(next)
	workers.Wait()
	j.whole = j.ctx.Err() == nil
	for i := range j.rows {
		for _, lp := range j.rows[i].LogP {
			if lp != lp {
				j.rows[i].Unscored++
			}
		}
	}
}

func (j *Job) fail(err error) {
	j.mu.Lock()
	if j.err == nil {
		j.err = err
	}
	j.mu.Unlock()
	j.cancel()
}

// execute computes one run and stores its rows' scores.
func (j *Job) execute(r run) (err error) {
	defer func() {
		// A panic on this goroutine would end the process; it becomes the job's error, which the caller treats like any
		// other broken promise of this library.
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	select {
	case j.scorer.slots <- struct{}{}:
		defer func() { <-j.scorer.slots }()
	case <-j.ctx.Done():
		return ErrCancelled
	}
	t, err := j.newTensors(r)
	if err != nil {
		return fmt.Errorf("preparing a run of %d x %d tokens: %w", len(r.rows), r.length+1, err)
	}
	defer t.close()
	if err := j.run(t); err != nil {
		if j.ctx.Err() != nil {
			return ErrCancelled
		}
		return fmt.Errorf("running %d x %d tokens: %w", len(r.rows), r.length+1, err)
	}
	return j.store(r, t)
}

// run calls ONNX Runtime in a way that Cancel can interrupt.
func (j *Job) run(t *tensors) error {
	opts, err := ort.NewRunOptions()
	if err != nil {
		return err
	}
	j.mu.Lock()
	if j.ctx.Err() != nil {
		j.mu.Unlock()
		_ = opts.Destroy()
		return ErrCancelled
	}
	j.active[opts] = struct{}{}
	j.mu.Unlock()
	err = j.scorer.session.RunWithOptions(t.inputs, t.outputs, opts)
	j.mu.Lock()
	delete(j.active, opts)
	j.mu.Unlock()
	return errors.Join(err, opts.Destroy())
}

// store copies a run's outputs to their rows.
func (j *Job) store(r run, t *tensors) error {
	ids, logps, at, err := t.topK(len(r.rows), r.length, j.req.K)
	if err != nil {
		return err
	}
	next, k := 0, j.req.K
	for b, index := range r.rows {
		l, row := j.layouts[index], &j.rows[index]
		first := 0 // the row's token that the model's first output is about
		if !l.prefix {
			first = 1
		}
		out := t.logp[b*r.length : b*r.length+l.positions]
		for i, lp := range out {
			if math.IsNaN(float64(lp)) || lp > 0 {
				return fmt.Errorf("row %d: the prior gives ln P = %v at position %d; the model is damaged", index, lp, first+i)
			}
		}
		copy(row.LogP[first:], out)
		begin := next
		for next < len(at) && at[next] < int64(b*r.length+l.positions) {
			next++
		}
		row.TopPos = make([]int32, next-begin)
		for i, flat := range at[begin:next] {
			row.TopPos[i] = int32(int(flat)-b*r.length) + int32(first)
		}
		row.TopIDs = append([]int32(nil), ids[begin*k:next*k]...)
		row.TopLogP = append([]float32(nil), logps[begin*k:next*k]...)
		// What lies between the row's end and the next row is padding.
		for next < len(at) && at[next] < int64((b+1)*r.length) {
			next++
		}
		j.scored.Add(int64(l.positions))
	}
	return nil
}

// Wait returns true once the job is done, or false after d.
func (j *Job) Wait(d time.Duration) bool {
	select {
	case <-j.done:
		return true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-j.done:
		return true
	case <-timer.C:
		return false
	}
}

// Scored is the number of tokens scored so far.
func (j *Job) Scored() int64 { return j.scored.Load() }

// Cancel terminates the runs in flight and returns when every buffer is out of use. The job's result is then
// ErrCancelled, unless it was done before.
func (j *Job) Cancel() {
	j.cancel()
	for {
		// A run may enter ONNX Runtime a moment after it was told to stop; the flag is therefore set again until the
		// job has ended.
		j.mu.Lock()
		for opts := range j.active {
			_ = opts.Terminate()
		}
		j.mu.Unlock()
		if j.Wait(10 * time.Millisecond) {
			return
		}
	}
}

// Result waits for the job and returns its rows, in the request's order.
func (j *Job) Result() ([]Row, error) {
	<-j.done
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return nil, j.err
	}
	if !j.whole {
		return nil, ErrCancelled
	}
	return j.rows, nil
}

// PanicError carries a panic out of a job's goroutine.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("panic while scoring: %v\n%s", e.Value, e.Stack)
}

// tensors are a run's inputs and outputs. The inputs lie in Go memory that is pinned, since ONNX Runtime keeps their
// addresses between calls.
type tensors struct {
	inputs, outputs []ort.Value
	logp            []float32
	pins            runtime.Pinner
}

func (j *Job) newTensors(r run) (t *tensors, err error) {
	t = &tensors{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	width := r.length + 1
	ids := make([]int64, len(r.rows)*width)
	for b, index := range r.rows {
		dst := ids[b*width : b*width+j.layouts[index].positions+1]
		if j.layouts[index].prefix {
			dst[0] = int64(*j.scorer.prior.BOS.ID)
			dst = dst[1:]
		}
		for i := range dst {
			dst[i] = int64(j.req.Rows[index][i])
		}
	}
	low, high := []float32{1}, []float32{0} // the empty range: ln P is never positive
	if len(j.req.Keep) > 0 {
		low, high = nil, nil
		for _, k := range j.req.Keep {
			low, high = append(low, k.Low), append(high, k.High)
		}
	}
	t.logp = make([]float32, len(r.rows)*r.length)
	ranges := int64(len(low))
	if err = errors.Join(
		addTensor(t, &t.inputs, ids, int64(len(r.rows)), int64(width)),
		addTensor(t, &t.inputs, []int64{int64(j.req.K)}, 1),
		addTensor(t, &t.inputs, low, ranges),
		addTensor(t, &t.inputs, high, ranges),
		addTensor(t, &t.outputs, t.logp, int64(len(r.rows)), int64(r.length)),
	); err != nil {
		return nil, err
	}
	t.outputs = append(t.outputs, nil, nil, nil) // as many rows as are wanted: ONNX Runtime allocates them
	return t, nil
}

func addTensor[T ort.TensorData](t *tensors, list *[]ort.Value, data []T, shape ...int64) error {
	t.pins.Pin(&data[0])
	v, err := ort.NewTensor(ort.NewShape(shape...), data)
	if err != nil {
		return err
	}
	*list = append(*list, v)
	return nil
}

// topK returns the stored top-k of the run: k ids and ln P for each flat position in at, which ascend.
func (t *tensors) topK(rows, length, k int) (ids []int32, logps []float32, at []int64, err error) {
	pos, ok1 := t.outputs[1].(*ort.Tensor[int64])
	id, ok2 := t.outputs[2].(*ort.Tensor[int32])
	lp, ok3 := t.outputs[3].(*ort.Tensor[float32])
	if !ok1 || !ok2 || !ok3 {
		return nil, nil, nil, fmt.Errorf("the graph's top-k outputs have types other than int64, int32, float32; export the prior again")
	}
	at, ids, logps = pos.GetData(), id.GetData(), lp.GetData()
	if len(ids) != len(at)*k || len(logps) != len(at)*k || len(at) > rows*length {
		return nil, nil, nil, fmt.Errorf("the graph gave %d positions, %d ids and %d ln P for k = %d; export the prior again", len(at), len(ids), len(logps), k)
	}
	return ids, logps, at, nil
}

func (t *tensors) close() {
	for _, list := range [][]ort.Value{t.inputs, t.outputs} {
		for _, v := range list {
			if v != nil {
				_ = v.Destroy()
			}
		}
	}
	t.pins.Unpin()
}
