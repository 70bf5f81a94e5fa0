package scorer

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	ort "github.com/yalue/onnxruntime_go"

	"toedit/editor/prior"
)

// attentionKernels are ONNX Runtime's own for attention on a card: flash (1), memory-efficient (2), plain (16). By default it
// takes cuDNN's where cuDNN is installed, and a row's scores would depend on that.
const attentionKernels = "19"

// device is where a session computes.
type device struct {
	cuda bool
	id   int // of the card
}

func (d device) String() string {
	if d.cuda {
		return fmt.Sprintf("cuda:%d", d.id)
	}
	return "cpu"
}

// deviceOf is the device that was asked for, if the prior was exported for one of its kind. Nothing falls back to the CPU in
// silence: scores of a graph for a card and of one for the CPU differ.
func deviceOf(p *prior.Prior, asked string) (device, error) {
	if p.Device == prior.DeviceElsewhere {
		return device{}, fmt.Errorf("prior %s has no graph (it was exported with --no-graph): score with toedit.torch.score or toedit.scores, or export it again", p.Dir)
	}
	d := device{cuda: p.Device == prior.DeviceCUDA}
	kind, number, numbered := strings.Cut(asked, ":")
	switch {
	case asked == "":
		return d, nil
	case kind == prior.DeviceCUDA:
		if numbered {
			id, err := strconv.Atoi(number)
			if err != nil || id < 0 {
				return device{}, fmt.Errorf(`device is %q, but must be "cpu", "cuda" or "cuda:N" with a card's number`, asked)
			}
			d.id = id
		}
		if !d.cuda {
			return device{}, fmt.Errorf("prior %s was exported for the CPU (%s) and cannot run on %s; export it again with --dtype bf16 or fp16", p.Dir, p.DType, asked)
		}
		return d, nil
	case asked == prior.DeviceCPU:
		if d.cuda {
			return device{}, fmt.Errorf("prior %s was exported for CUDA (%s) and cannot run on the CPU; export it again with --dtype fp32 or int8", p.Dir, p.DType)
		}
		return d, nil
	}
	return device{}, fmt.Errorf(`device is %q, but must be "cpu", "cuda" or "cuda:N"`, asked)
}

// append puts the card in front of the session's providers. With tf32 float32 products may be computed in TensorFloat-32.
func (d device) append(so *ort.SessionOptions, tf32 bool) error {
	options, err := ort.NewCUDAProviderOptions()
	if err != nil {
		return d.missing(err)
	}
	defer func() { _ = options.Destroy() }()
	err = options.Update(map[string]string{
		"device_id":             strconv.Itoa(d.id),
		"arena_extend_strategy": "kSameAsRequested", // not the next power of two: the trainer wants the card's memory
		"use_tf32":              flag(tf32),
		"sdpa_kernel":           attentionKernels,
	})
	if err == nil {
		// Patterns would ask for all of a shape's memory in one piece, beside the pieces of the shapes before: twice as much.
		err = errors.Join(so.SetMemPattern(false), so.AppendExecutionProviderCUDA(options))
	}
	if err != nil {
		return d.missing(err)
	}
	return nil
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// missing says what a machine may lack that cannot run on a card.
func (d device) missing(err error) error {
	text := err.Error()
	hint := "pip install 'toedit[cuda]' in place of 'toedit[cpu]'"
	switch {
	case strings.Contains(text, "libcudnn"):
		hint = "an operator of this prior needs cuDNN 9, for the CUDA that onnxruntime-gpu was built with: pip install nvidia-cudnn-cu13"
	case strings.Contains(text, "libcublas"), strings.Contains(text, "libcudart"), strings.Contains(text, "libcufft"), strings.Contains(text, "libcurand"):
		hint = "CUDA's libraries are missing, or are of another version than onnxruntime-gpu was built with: pip install 'toedit[cuda]' brings them"
	case strings.Contains(text, "CUDA failure 3:"):
		hint = "CUDA does not survive a fork: start workers by spawn or forkserver, or score in the training process (toedit.torch.EditingLoader, or scores that are stored)"
	case strings.Contains(text, "Invalid device ID"):
		hint = "there is no such card, or it is not visible (CUDA_VISIBLE_DEVICES)"
	case strings.Contains(text, "libcuda.so"), strings.Contains(text, "driver"), strings.Contains(text, "no CUDA-capable device"), strings.Contains(text, "CUDA failure 100"):
		hint = "the NVIDIA driver is missing or too old, or no card is visible (CUDA_VISIBLE_DEVICES)"
	}
	return &ErrRuntime{fmt.Sprintf("ONNX Runtime cannot use %s: %v. %s", d, err, hint)}
}

// thread is one OS thread that makes all of a session's calls: the CUDA provider keeps handles and streams for each thread that it
// has ever met, and goroutines move between threads.
type thread struct {
	calls chan func()
}

func newThread() *thread {
	t := &thread{calls: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for call := range t.calls {
			call()
		}
	}()
	return t
}

// do makes a call on the thread. A panic in it is the caller's.
func (t *thread) do(call func() error) error {
	var (
		err      error
		panicked any
	)
	done := make(chan struct{})
	t.calls <- func() {
		defer close(done)
		defer func() { panicked = recover() }()
		err = call()
	}
	<-done
	if panicked != nil {
		panic(panicked)
	}
	return err
}

// close ends the thread. A nil thread is none.
func (t *thread) close() {
	if t != nil {
		close(t.calls)
	}
}

// warm makes a run of every shape, so that kernels are chosen and memory is taken before training begins. Where there is no
// memory for a shape, half of its rows make the shape, and so on: that of every run to come.
func (s *Scorer) warm() error {
	s.shapes.most = map[int]int{}
	for length := s.shapes.length(1); ; length = s.shapes.length(length + 1) {
		rows := s.shapes.rows(length)
		err := s.try(rows, length)
		for ; rows > 1 && outOfMemory(err); err = s.try(rows, length) {
			rows /= 2
			s.shapes.most[length] = rows
			s.halved.Add(1)
		}
		if err != nil || length == s.shapes.context {
			return err
		}
	}
}

// try makes a run of a shape, of ids that do not matter.
func (s *Scorer) try(rows, length int) error {
	j := &Job{scorer: s, req: Request{Rows: [][]uint32{make([]uint32, length)}, K: 1}, active: map[*ort.RunOptions]struct{}{}}
	j.begin()
	j.pieces = []piece{{window: window{first: 1, end: length}}}
	return j.compute(run{pieces: []int{0}, length: length, batch: rows}, func(*tensors) error { return nil })
}
