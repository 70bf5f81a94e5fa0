package editor

import (
	"math"

	"golang.org/x/sys/cpu"
)

// expConstants are those of expNeg for expNegAVX2: what exponents are split with, 1, and 1/n! for n = 12, 13, 10, 11, ... 4, 5, 3.
var expConstants = [16]float64{math.Log2E, 0.5, ln2Hi, ln2Lo, 1,
	1.0 / 479001600, 1.0 / 6227020800, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 40320, 1.0 / 362880, 1.0 / 720, 1.0 / 5040, 1.0 / 24, 1.0 / 120, 1.0 / 6}

// expNegAll replaces every x by expNeg(x). None is above 0, or below lowest.
func expNegAll(x []float64, lowest float64) {
	// Below, results are subnormal numbers, or 2**n cannot be made in one step.
	if whole := len(x) &^ 3; whole > 0 && lowest > -700 && cpu.X86.HasAVX2 {
		expNegAVX2(&x[0], whole, &expConstants)
		x = x[whole:]
	}
	expNegEach(x)
}

//go:noescape
func expNegAVX2(x *float64, n int, constants *[16]float64)
