package scorer

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
)

// The texts are those of ONNX Runtime 1.31, opened where the things were missing; that of a fork is CUDA's documentation's.
func TestWhatIsMissing(t *testing.T) {
	for text, hint := range map[string]string{
		"Failed to load library libonnxruntime_providers_cuda.so with error: libcurand.so.10: cannot open shared object file": "pip install 'toedit[cuda]' brings them",
		"Failed to load library libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared object file":    "the NVIDIA driver is missing",
		"CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version":                                       "the NVIDIA driver is missing or too old",
		"cuDNN is unavailable for CUDA Execution Provider: dlopen failed for libcudnn.so":                                     "pip install nvidia-cudnn-cu13",
		"CUDA failure 3: initialization error":                                  "start workers by spawn",
		"Invalid device ID: 1, must be between 0 (inclusive) and 1 (exclusive)": "there is no such card",
		"CUDA execution provider is not enabled in this build":                  "pip install 'toedit[cuda]' in place of 'toedit[cpu]'",
	} {
		err := device{cuda: true, id: 1}.missing(errors.New(text))
		assert.ErrorContains(t, err, "cuda:1: "+text)
		assert.ErrorContains(t, err, hint)
	}
}
