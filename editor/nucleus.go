package editor

import (
	"math"
	"slices"
)

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
	p            float64
	temperature  float64
	k            int
	alone        uint64       // keys below it: the most probable token alone has p, at temperature 1
	plain        *halfWeights // exp(a)
	exponentials int          // of the old id, that it takes
	powers       [54]float64  // factor * 2**(-e/T) for e = 0.., of the bound above temperature 1
}

func newNucleus(p *Policy, weights *halfWeights, vocabulary int) *nucleus {
	n := &nucleus{p: p.TopP, temperature: p.Temperature, k: p.K, plain: weights, exponentials: 1}
	if p.Temperature == 1 {
		n.alone = bandLimit(Log32Bound(p.TopP))
		return n
	}
	n.plain, n.exponentials = newHalfWeights(1), 2
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

// ofEight is size for stored position j, where the old id is the first of eight choices, of which those behind the k-th weigh
// nothing. own are the old id's exponentials. Known is 1 or 0, for those who want no branch that depends on it.
func (n *nucleus) ofEight(x *choices, s *Scores, j int, own []float64) (size, known int) {
	if n.temperature == 1 {
		if keyOf(s.LogP[s.TopPos[j]]) < n.alone {
			return 1, 1
		}
		size, reached, _ := x.reach(own[0], n.p, 0)
		return size, atLeast(reached, n.p)
	}
	i, plain := x.index, n.plain
	mass := own[0] + plain[i[1]] + plain[i[2]] + plain[i[3]] + plain[i[4]] + plain[i[5]] + plain[i[6]] + plain[i[7]]
	size, reached, least := x.reach(own[1], 0, n.p)
	most := least + n.rest(1-mass, float64(s.TopLogP[j*s.K+n.k-1]))
	return size, atLeast(reached, float64(n.p*most)) & atLeast(least, leastSum)
}

// reach adds up first and the weights but the first. It returns how many it takes to reach value + share of the sum of all, what
// they add up to, and the sum of all.
func (x *choices) reach(first, value, share float64) (size int, reached, all float64) {
	w := &x.weights
	// Not by addUp: the comparisons find the sums in registers, which is 2 to 7 % of a plan with a nucleus.
	s1 := first + w[1]
	s2 := s1 + w[2]
	s3 := s2 + w[3]
	s4 := s3 + w[4]
	s5 := s4 + w[5]
	s6 := s5 + w[6]
	s7 := s6 + w[7]
	value += float64(share * s7)
	size = 8 - atLeast(first, value) - atLeast(s1, value) - atLeast(s2, value) - atLeast(s3, value) -
		atLeast(s4, value) - atLeast(s5, value) - atLeast(s6, value)
	r := &x.reached
	r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7] = first, s1, s2, s3, s4, s5, s6, s7
	return size, r[(size-1)&7], s7
}

// exponentialsOf are exp(logp) of the old ids of candidates and, at a temperature other than 1, exp(logp / temperature) behind
// each: n.exponentials for a candidate.
func (n *nucleus) exponentialsOf(s *Scores, candidates []int32, x []float64) []float64 {
	x = slices.Grow(x[:0], n.exponentials*len(candidates))
	lowest := 0.0
	for _, j := range candidates {
		v := float64(s.LogP[s.TopPos[j]])
		x = append(x, v)
		if n.temperature != 1 {
			v /= n.temperature
			x = append(x, v)
		}
		lowest = min(lowest, v)
	}
	expNegAll(x, lowest)
	return x
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
	const one = 1023 // the exponent of 1
	b := math.Float64bits(r)
	m := math.Float64frombits(b&(1<<52-1) | one<<52)
	return float64(n.powers[min(one-uint(b>>52), uint(len(n.powers)-1))] * (1 + (m-1)/n.temperature))
}
