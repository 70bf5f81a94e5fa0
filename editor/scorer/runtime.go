package scorer

import (
	"fmt"
	"os"
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
	// From 1.29 on ONNX Runtime reports its use to its maker, from a thread of its own, unless this stands in the
	// environment before it is opened. Nobody who trains asked for that, and the thread hangs forked children at their end.
	_ = os.Setenv("ORT_DISABLE_TELEMETRY", "1")
	ort.SetSharedLibraryPath(path)
	if err := ort.InitializeEnvironment(ort.WithLogLevelError()); err != nil {
		return tooOld(path, fmt.Sprintf("cannot be used (%v; error 2 means that it is too old)", err))
	}
	if version := ort.GetVersion(); !recent(version) {
		_ = ort.DestroyEnvironment()
		return tooOld(path, "is version "+version)
	}
	runtimeState.library = path
	return nil
}

// oldestMajor.oldestMinor is the first version that runs the graphs of priors: those before it divide by zero, which ends the
// process, when TopK gets no rows, as it does where no token of a run is wanted.
const oldestMajor, oldestMinor = 1, 31

func recent(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > oldestMajor || major == oldestMajor && minor >= oldestMinor
}

func tooOld(path, what string) error {
	return &ErrRuntime{fmt.Sprintf("ONNX Runtime at %s %s, but toedit needs onnxruntime >= %d.%d: pip install --upgrade 'toedit[cpu]'",
		path, what, oldestMajor, oldestMinor)}
}
