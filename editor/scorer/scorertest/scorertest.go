// Package scorertest is what tests of scoring need: ONNX Runtime's library and prior folders.
package scorertest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// findLibrary prints where pip put the library, as toedit._runtime does.
const findLibrary = `
import importlib.util, pathlib
spec = importlib.util.find_spec("onnxruntime")
folders = spec.submodule_search_locations if spec else []
print(*sorted(str(f) for d in folders for f in pathlib.Path(d, "capi").glob("libonnxruntime.so*"))[-1:])
`

var library = sync.OnceValues(func() (path, why string) {
	if path := os.Getenv("TOEDIT_ONNXRUNTIME"); path != "" {
		return path, ""
	}
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	out, err := exec.Command(python, "-c", findLibrary).Output()
	if path := strings.TrimSpace(string(out)); err == nil && path != "" {
		return path, ""
	}
	return "", "TOEDIT_ONNXRUNTIME is not set and " + python + " has no package onnxruntime"
})

// Library is the path of libonnxruntime: $TOEDIT_ONNXRUNTIME, or that of the onnxruntime package of $PYTHON (python3). The
// test is skipped where there is none.
func Library(t testing.TB) string {
	t.Helper()
	path, why := library()
	if path == "" {
		t.Skip(why)
	}
	return path
}

// BundledPrior is the folder of the prior that comes with toedit.
func BundledPrior(t testing.TB) string {
	t.Helper()
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			return filepath.Join(folder, "python", "toedit", "builtin_prior")
		}
		parent := filepath.Dir(folder)
		if parent == folder {
			t.Fatal("no go.mod above the working directory")
		}
		folder = parent
	}
}

// ChangedPrior is a new folder with the bundled prior's files, whose settings were changed by change.
func ChangedPrior(t testing.TB, change func(settings map[string]any)) string {
	t.Helper()
	from, to := BundledPrior(t), t.TempDir()
	for _, name := range []string{"model.onnx", "tokenizer.json"} {
		if err := os.Symlink(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(from, "prior.json"))
	if err != nil {
		t.Fatal(err)
	}
	var settings map[string]any
	if err := json.Unmarshal(raw, &settings); err != nil {
		t.Fatal(err)
	}
	change(settings)
	if raw, err = json.Marshal(settings); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "prior.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}
