//go:build !amd64

package editor

// expNegAll replaces every x by expNeg(x).
func expNegAll(x []float64, _ float64) { expNegEach(x) }
