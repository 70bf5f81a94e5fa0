package scorer

import (
	"fmt"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

// ONNX Runtime is one library with one environment in a process. It is opened with the first scorer and stays: its
// worker-free environment costs nothing, and taking it down while another thread scores could not be made safe.
var runtimeState struct {
	sync.Mutex
	library string // path that was opened, "" before
}

// ErrRuntime marks errors about the ONNX Runtime library itself, not about a prior.
type ErrRuntime struct{ msg string }

func (e *ErrRuntime) Error() string { return e.msg }

// openRuntime loads the library at path unless that was done before.
func openRuntime(path string) error {
	runtimeState.Lock()
	defer runtimeState.Unlock()
	if runtimeState.library != "" {
		if runtimeState.library != path {
			return &ErrRuntime{fmt.Sprintf("this process already uses ONNX Runtime from %s and cannot load %s as well; use one of them",
				runtimeState.library, path)}
		}
		return nil
	}
	ort.SetSharedLibraryPath(path)
	if err := ort.InitializeEnvironment(ort.WithLogLevelError()); err != nil {
		return &ErrRuntime{fmt.Sprintf("ONNX Runtime at %s cannot be used: %v; toedit needs onnxruntime >= 1.23 (error 2 above means that "+
			"it is older): pip install 'toedit[cpu]'", path, err)}
	}
	runtimeState.library = path
	return nil
}
