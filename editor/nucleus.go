package editor

import "math"

// nucleus finds the nucleus of a distribution of which the most probable
// choices are stored: the fewest most probable tokens that have a share p of
// the whole of it, after the temperature (Holtzman and others, "The curious
// case of neural text degeneration", arXiv 1904.09751, section 3.1).
//
// At temperature 1 what is stored are probabilities of the whole, and their
// running sum is compared with p. At another one the whole's sum is not stored,
// but bounded: the tokens that are not stored have the rest of the probability,
// and none has more than the last stored one. Where both bounds give the same
// nucleus, it is that; where not, the position is truncated.
type nucleus struct {
	p           float64
	temperature float64
	alone       uint64       // keys below it: the most probable token alone has p, at temperature 1
	plain       *halfWeights // exp(a)
	powers      [54]float64  // factor * 2**(-e/T) for e = 0.., of the bound above temperature 1
}

func newNucleus(p *Policy, weights *halfWeights, vocabulary int) *nucleus {
	n := &nucleus{p: p.TopP, temperature: p.Temperature, plain: weights}
	if p.Temperature == 1 {
		n.alone = bandLimit(Log32Bound(p.TopP))
		return n
	}
	n.plain = newHalfWeights(1)
	if others := vocabulary - p.K; p.Temperature > 1 && others > 0 {
		factor := 1 / expNeg(-float64((1-1/p.Temperature)*logOf(float64(others))))
		for e := range n.powers {
			n.powers[e] = float64(factor * expNeg(-float64(float64(e)*math.Ln2)/p.Temperature))
		}
	}
	return n
}

// size is how many of the choices are the nucleus, and whether that is known. weights are those of logp; old has the log
// probability oldLogP, which is not rounded.
func (n *nucleus) size(ids []int32, logp []float32, weights []float64, old uint32, oldLogP float32) (int, bool) {
	if n.temperature == 1 {
		if uint32(ids[0]) == old && keyOf(oldLogP) < n.alone {
			return 1, true
		}
		sum := 0.0
		for i, id := range ids {
			m := weights[i]
			if uint32(id) == old {
				m = expNeg(float64(oldLogP))
			}
			if sum += m; sum >= n.p {
				return i + 1, true
			}
		}
		return 0, false
	}
	// The stored choices' probability, and their sum after the temperature, which is the least that the whole's can be.
	mass, least := 0.0, 0.0
	for i, id := range ids {
		if uint32(id) == old {
			mass += expNeg(float64(oldLogP))
			least += expNeg(float64(oldLogP) / n.temperature)
		} else {
			mass += n.plain.weight(logp[i])
			least += weights[i]
		}
	}
	most := least + n.rest(1-mass, float64(logp[len(logp)-1]))
	sum := 0.0
	for i, id := range ids {
		w := weights[i]
		if uint32(id) == old {
			w = expNeg(float64(oldLogP) / n.temperature)
		}
		if sum += w; sum >= float64(n.p*least) {
			return i + 1, sum >= float64(n.p*most) && least >= leastSum
		}
	}
	return 0, false
}

// ofEight is size where the old id is the first of eight choices, of which those behind the k-th weigh nothing. last is the
// k-th's log probability.
func (n *nucleus) ofEight(x *eight, k int, last, oldLogP float32) (int, bool) {
	if n.temperature == 1 {
		if keyOf(oldLogP) < n.alone {
			return 1, true
		}
		size, reached, _ := x.reach(expNeg(float64(oldLogP)), n.p, 0)
		return size, reached >= n.p
	}
	mass := expNeg(float64(oldLogP))
	for _, i := range x.index[1:k] {
		mass += n.plain[i]
	}
	size, reached, least := x.reach(expNeg(float64(oldLogP)/n.temperature), 0, n.p)
	return size, reached >= float64(n.p*(least+n.rest(1-mass, float64(last)))) && least >= leastSum
}

// reach adds up c0 and the weights but the first. It returns how many it takes to reach value + share of the sum of all, what
// they add up to, and the sum of all.
func (x *eight) reach(c0, value, share float64) (size int, reached, all float64) {
	x.addUp(&x.reached, c0)
	r := &x.reached
	value += float64(share * r[7])
	size = 8 - atLeast(r[0], value) - atLeast(r[1], value) - atLeast(r[2], value) - atLeast(r[3], value) -
		atLeast(r[4], value) - atLeast(r[5], value) - atLeast(r[6], value)
	return size, r[(size-1)&7], r[7]
}

// rest is the most that tokens which share the probability r, none of them above exp(last), can add up to after the
// temperature.
func (n *nucleus) rest(r, last float64) float64 {
	switch {
	case r <= 0:
		return 0
	case n.temperature < 1:
		// q**(1/T) = q * q**(1/T-1), and the second factor is largest for the last.
		return float64(r * expNeg(float64(last*(1/n.temperature-1))))
	}
	// The sum of q**(1/T) over N tokens is largest where all have r/N: N**(1-1/T) * r**(1/T). With r = m * 2**-e and m in
	// [1, 2), m**(1/T) <= 1 + (m-1)/T (Bernoulli).
	f, e := math.Frexp(r)
	return float64(n.powers[min(1-e, len(n.powers)-1)] * (1 + (2*f-1)/n.temperature))
}
