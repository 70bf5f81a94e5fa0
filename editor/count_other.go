//go:build !amd64

package editor

// countBelow is the sum of below over logp.
func countBelow(limit uint64, logp []float32) int { return countBelowPortable(limit, logp) }
