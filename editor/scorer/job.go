package scorer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
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
	scorer *Scorer
	req    Request
	pieces []piece
	rows   []Row
	kept   []topK // each piece's

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when every run has ended and every buffer is out of use
	scored atomic.Int64  // tokens scored so far

	mu     sync.Mutex
	active map[*ort.RunOptions]struct{} // runs inside ONNX Runtime, to be terminated by Cancel
	err    error                        // the first error
	whole  bool                         // every run was stored
}

// topK is the stored top-k of one piece: positions in the row, and k ids and ln P for each.
type topK struct {
	pos  []int32
	ids  []int32
	logp []float32
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
	j := &Job{scorer: s, req: req, active: map[*ort.RunOptions]struct{}{}}
	j.begin()
	j.rows = make([]Row, len(req.Rows))
	for i, row := range req.Rows {
		var starts []int32
		if req.Starts != nil {
			starts = req.Starts[i]
		}
		j.pieces = append(j.pieces, piecesOf(s.prior, i, row, starts)...)
		logp := make([]float32, len(row))
		for t := range logp {
			logp[t] = unscored
		}
		j.rows[i].LogP = logp
	}
	j.kept = make([]topK, len(j.pieces))
	positions := make([]int, len(j.pieces))
	for i, p := range j.pieces {
		positions[i] = p.positions()
	}
	go j.loop(s.shapes.plan(positions))
	return j, nil
}

func (j *Job) begin() {
	j.done = make(chan struct{})
	j.ctx, j.cancel = context.WithCancel(context.Background())
}

// loop hands the runs to as many goroutines as the scorer has threads.
func (j *Job) loop(runs []run) {
	defer j.scorer.mu.RUnlock() // after all is done, so that who has closed the scorer finds it so
	defer close(j.done)
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
	if j.whole = j.ctx.Err() == nil; j.whole {
		j.assemble()
	}
}

// assemble puts the pieces' stored top-k together, row by row, and counts what was not scored.
func (j *Job) assemble() {
	for i := 0; i < len(j.pieces); {
		end := i + 1
		for end < len(j.pieces) && j.pieces[end].row == j.pieces[i].row {
			end++
		}
		row, kept := &j.rows[j.pieces[i].row], j.kept[i:end]
		if len(kept) == 1 {
			row.TopPos, row.TopIDs, row.TopLogP = kept[0].pos, kept[0].ids, kept[0].logp
		} else {
			for _, k := range kept {
				row.TopPos = append(row.TopPos, k.pos...)
				row.TopIDs = append(row.TopIDs, k.ids...)
				row.TopLogP = append(row.TopLogP, k.logp...)
			}
		}
		i = end
	}
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

// execute computes one run and stores its pieces' scores. A run that there is no memory for is made in halves, and a single
// row when the other threads' runs have given theirs back.
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
	held := min(j.scorer.need(r.batch, r.length), j.scorer.limit)
	if j.scorer.memory.Acquire(j.ctx, held) != nil {
		return ErrCancelled
	}
	defer func() { j.scorer.memory.Release(held) }()
	attempt := func(r run) error {
		return j.compute(r, func(t *tensors) error { return j.store(r, t) })
	}
	alone := func() error {
		j.scorer.memory.Release(held)
		held = 0
		if j.scorer.memory.Acquire(j.ctx, j.scorer.limit) != nil {
			return ErrCancelled
		}
		held = j.scorer.limit
		return nil
	}
	return j.halving(r, attempt, alone)
}

// halving makes a run by attempt, in halves where that runs out of memory. A single row is tried once more after alone,
// which returns when no other run has memory, and keeps it so.
func (j *Job) halving(r run, attempt func(run) error, alone func() error) error {
	err := attempt(r)
	if r.batch == 1 && outOfMemory(err) && j.ctx.Err() == nil {
		if err := alone(); err != nil {
			return err
		}
		if err = attempt(r); err == nil {
			j.scorer.waited.Add(1)
		}
	}
	switch {
	case err == nil:
		j.scorer.runs.Add(1)
		j.scorer.padded.Add(int64(r.batch * r.length))
		return nil
	case j.ctx.Err() != nil:
		return ErrCancelled
	case !outOfMemory(err):
		return err
	case r.batch == 1:
		return fmt.Errorf("there is no memory for a single row of %d tokens: score shorter rows or use a prior with a shorter context (toedit export --max-length): %w", r.length, err)
	}
	j.scorer.halved.Add(1)
	half := (r.batch + 1) / 2
	for first := 0; first < len(r.pieces); first += half {
		part := run{pieces: r.pieces[first:min(first+half, len(r.pieces))], length: r.length, batch: half}
		if !j.scorer.shapes.fixed {
			part.batch = len(part.pieces)
		}
		if err := j.halving(part, attempt, alone); err != nil {
			return err
		}
	}
	return nil
}

// outOfMemory tells an error of an allocation from others: ONNX Runtime has no code for it.
func outOfMemory(err error) bool {
	if err == nil {
		return false
	}
	text := strings.ToLower(err.Error())
	for _, sign := range []string{"failed to allocate memory", "bad_alloc", "bad allocation", "out of memory", "alloc_failed"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// compute makes one run and hands its outputs to use.
func (j *Job) compute(r run, use func(*tensors) error) error {
	t, err := j.newTensors(r)
	if err != nil {
		return fmt.Errorf("preparing a run of %d x %d tokens: %w", r.batch, r.length+1, err)
	}
	defer t.close()
	if err := j.scorer.onThread(func() error { return j.run(t) }); err != nil {
		return fmt.Errorf("running %d x %d tokens: %w", r.batch, r.length+1, err)
	}
	return use(t)
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

// store copies a run's outputs to their pieces' rows.
func (j *Job) store(r run, t *tensors) error {
	ids, logps, at, err := t.topK(r.batch, r.length, j.req.K)
	if err != nil {
		return err
	}
	next, k := 0, j.req.K
	// skip passes over what is stored before a flat position.
	skip := func(limit int) int {
		for next < len(at) && at[next] < int64(limit) {
			next++
		}
		return next
	}
	for b, index := range r.pieces {
		p := j.pieces[index]
		// What the window reads as context only was scored by the window before.
		from, to := b*r.length+p.output(p.first), b*r.length+p.output(p.end)
		out := t.logp[from:to]
		for i, lp := range out {
			if math.IsNaN(float64(lp)) || lp > 0 {
				return fmt.Errorf("row %d: the prior gives ln P = %v at position %d; the model is damaged", p.row, lp, p.base+p.first+i)
			}
		}
		copy(j.rows[p.row].LogP[p.base+p.first:], out)
		begin, end := skip(from), skip(to)
		kept := &j.kept[index]
		kept.pos = make([]int32, end-begin)
		for i, flat := range at[begin:end] {
			kept.pos[i] = int32(int(flat) - from + p.base + p.first)
		}
		kept.ids = append([]int32(nil), ids[begin*k:end*k]...)
		kept.logp = append([]float32(nil), logps[begin*k:end*k]...)
		j.scored.Add(int64(len(out)))
		j.scorer.positions.Add(int64(p.positions()))
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
	return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack)
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
	ids := make([]int64, r.batch*width)
	for b, index := range r.pieces {
		p := j.pieces[index]
		dst := ids[b*width:][:p.positions()+1]
		if p.prefix {
			dst[0] = int64(*j.scorer.prior.BOS.ID)
			dst = dst[1:]
		}
		for i, id := range j.req.Rows[p.row][p.base+p.start : p.base+p.end] {
			dst[i] = int64(id)
		}
	}
	low, high := []float32{1}, []float32{0} // the empty range: ln P is never positive
	if len(j.req.Keep) > 0 {
		low, high = nil, nil
		for _, k := range j.req.Keep {
			low, high = append(low, k.Low), append(high, k.High)
		}
	}
	t.logp = make([]float32, r.batch*r.length)
	ranges := int64(len(low))
	if err = errors.Join(
		addTensor(t, &t.inputs, ids, int64(r.batch), int64(width)),
		addTensor(t, &t.inputs, []int64{int64(j.req.K)}, 1),
		addTensor(t, &t.inputs, low, ranges),
		addTensor(t, &t.inputs, high, ranges),
		addTensor(t, &t.outputs, t.logp, int64(r.batch), int64(r.length)),
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
