package editor

import (
	"math"
	"math/big"
)

// Log32Bound returns the smallest float32 v with float64(v) >= ln(threshold):
// for every float32 logp, logp >= v in float32 is the same decision as
// float64(logp) >= ln(threshold).
func Log32Bound(threshold float64) float32 { return atLeast32(logOf(threshold)) }

// atLeast32 is the smallest float32 v with float64(v) >= x.
func atLeast32(x float64) float32 {
	v := float32(x)
	if float64(v) < x {
		v = math.Nextafter32(v, float32(math.Inf(1)))
	}
	return v
}

// above32 is the smallest float32 v with float64(v) > x.
func above32(x float64) float32 {
	v := atLeast32(x)
	if float64(v) == x {
		v = math.Nextafter32(v, float32(math.Inf(1)))
	}
	return v
}

// logOf returns ln x rounded to the nearest float64, the same on every
// architecture (math.Log is assembly on some). It is slow (tens of
// microseconds) and called once a policy.
//
// With x = f 2**e and f in [1/2, 1): ln x = 2 atanh((f-1)/(f+1)) + 2 e atanh(1/3).
func logOf(x float64) float64 {
	switch {
	case x == 1:
		return 0
	case !(x > 0) || math.IsInf(x, 1):
		return math.Log(x) // -Inf, NaN or +Inf
	}
	const precision = 160
	number := func(v float64) *big.Float { return new(big.Float).SetPrec(precision).SetFloat64(v) }
	// atanh z = z + z**3/3 + z**5/5 + ..., where |z| <= 1/3.
	atanh := func(z *big.Float) *big.Float {
		square := number(0).Mul(z, z)
		power := number(0).Set(z)
		sum := number(0).Set(z)
		for n := 3.0; n < 2*precision/3; n += 2 {
			power.Mul(power, square)
			sum.Add(sum, number(0).Quo(power, number(n)))
		}
		return sum
	}
	f, e := math.Frexp(x)
	z := number(0).Quo(number(0).Sub(number(f), number(1)), number(0).Add(number(f), number(1)))
	ln := atanh(z)
	if e != 0 {
		third := number(0).Quo(number(1), number(3))
		ln.Add(ln, number(0).Mul(number(float64(e)), atanh(third)))
	}
	v, _ := ln.Mul(ln, number(2)).Float64()
	return v
}
