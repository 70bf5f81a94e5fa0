package editor

import "math"

// The exponential is the one transcendental function whose last bit decides
// draws. math.Exp is assembly on some architectures and Go on others, and they
// differ in that bit; this one is the same everywhere, because every operation
// is a correctly rounded float64 one in a written order, with the products in
// float64() so that none is fused with the addition after it.

// ln2Hi has 21 zero bits at its end, so that its product with any exponent of
// a float64 is exact; ln2Lo is the rest.
const (
	ln2Hi = 0x1.62e42fee00000p-1
	ln2Lo = math.Ln2 - ln2Hi
)

// expNeg returns e**x for x <= 0 (and NaN for NaN), within 0.9 units in the
// last place where the result is a normal number.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e**r is its Taylor polynomial of degree
// 13, whose remainder is below 2**-57.
func expNeg(x float64) float64 {
	if !(x >= -746) { // below half the smallest float64; and NaN
		if x < 0 {
			return 0
		}
		return x
	}
	n := int64(float64(x*math.Log2E) - 0.5)
	hi := x - float64(float64(n)*ln2Hi)
	lo := float64(float64(n) * ln2Lo)
	r := hi - lo
	rest := (hi - r) - lo // what rounding took from r

	// (e**r - 1 - r) / r**2, even and odd powers apart: two short chains of
	// operations instead of a long one.
	rr := float64(r * r)
	even := 1.0 / 479001600
	odd := 1.0 / 6227020800
	even = 1.0/3628800 + float64(even*rr)
	odd = 1.0/39916800 + float64(odd*rr)
	even = 1.0/40320 + float64(even*rr)
	odd = 1.0/362880 + float64(odd*rr)
	even = 1.0/720 + float64(even*rr)
	odd = 1.0/5040 + float64(odd*rr)
	even = 1.0/24 + float64(even*rr)
	odd = 1.0/120 + float64(odd*rr)
	even = 1.0/2 + float64(even*rr)
	odd = 1.0/6 + float64(odd*rr)
	q := even + float64(odd*r)
	y := 1 + (r + (float64(rr*q) + rest))

	if n >= -1021 {
		return y * math.Float64frombits(uint64(n+1023)<<52)
	}
	// The result may be subnormal: in two steps, so that only the last rounds.
	return float64(y*math.Float64frombits(uint64(n+200+1023)<<52)) * 0x1p-200
}

// expNegEach is expNegAll in Go, for every machine.
func expNegEach(x []float64) {
	for i, v := range x {
		x[i] = expNeg(v)
	}
}
