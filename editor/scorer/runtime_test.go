package scorer

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"toedit/editor/prior"
	"toedit/editor/scorer/scorertest"
)

// oldRuntime is a library like an ONNX Runtime that is too old: it has no API of the version that is asked for.
const oldRuntime = `
#include <stddef.h>
static const void* get_api(unsigned version) { return NULL; }
static const char* get_version(void) { return "1.2.3"; }
static struct { const void* (*get_api)(unsigned); const char* (*get_version)(void); } base = {get_api, get_version};
const void* OrtGetApiBase(void) { return &base; }
`

// Libraries that cannot be used are refused with what to do, and do not stand in the way of one that can.
func TestRuntimesThatCannotBeUsed(t *testing.T) {
	library := scorertest.Library(t)
	const inside = "TOEDIT_TEST_RUNTIME"
	if os.Getenv(inside) == "" {
		// A process opens one ONNX Runtime, so this needs a fresh one.
		child := exec.Command(os.Args[0], "-test.run=^TestRuntimesThatCannotBeUsed$", "-test.v")
		child.Env = append(os.Environ(), inside+"=1", "TOEDIT_ONNXRUNTIME="+library)
		out, err := child.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: TestRuntimesThatCannotBeUsed")
		return
	}
	p, err := prior.Open(scorertest.BundledPrior(t))
	require.NoError(t, err)
	dir := t.TempDir()
	text, other, old := filepath.Join(dir, "text.so"), filepath.Join(dir, "other.so"), filepath.Join(dir, "old.so")
	require.NoError(t, os.WriteFile(text, []byte("no library"), 0o600))
	compile(t, "int nothing;", other)
	compile(t, oldRuntime, old)
	for _, path := range []string{filepath.Join(dir, "none.so"), text, other, old} {
		_, err := Open(p, Options{Library: path, Threads: 1})
		var runtimeError *ErrRuntime
		require.ErrorAs(t, err, &runtimeError)
		assert.ErrorContains(t, err, path)
		assert.ErrorContains(t, err, "'toedit[cpu]'")
	}
	s, err := Open(p, Options{Library: library, Threads: 1})
	require.NoError(t, err)
	assert.Len(t, score(t, s, Request{Rows: [][]uint32{{1, 2}}, K: 1}), 1)
	require.NoError(t, s.Close())
}

func TestRecentVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"1.31.0": true, "1.31": true, "1.100.1": true, "2.0.0": true, "1.30.0": false, "1.4.0": false, "0.99.0": false, "": false, "new": false,
	} {
		assert.Equal(t, want, recent(version), version)
	}
}

func compile(t *testing.T, source, library string) {
	t.Helper()
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "gcc"
	}
	file := library + ".c"
	require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
	out, err := exec.Command(compiler, "-shared", "-fPIC", "-o", library, file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
