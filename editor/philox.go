package editor

import "math/bits"

// Multipliers and key increments of Philox4x64 (Salmon, Moraes, Dror and Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3): the
// increments are the golden ratio and sqrt(3)-1 as 64-bit fractions.
const (
	philoxM0     = 0xD2E7470EE14C6C93
	philoxM1     = 0xCA5A826395121157
	philoxW0     = 0x9E3779B97F4A7C15
	philoxW1     = 0xBB67AE8584CAA73B
	philoxRounds = 10
)

func philoxRound(c0, c1, c2, c3 uint64, key *[2]uint64) (uint64, uint64, uint64, uint64) {
	hi0, lo0 := bits.Mul64(philoxM0, c0)
	hi1, lo1 := bits.Mul64(philoxM1, c2)
	return hi1 ^ c1 ^ key[0], lo1, hi0 ^ c3 ^ key[1], lo0
}

// Philox4x64 returns the Philox4x64-10 block of a key and a counter, in the
// convention of Random123 (the counter is used as it is; NumPy's generator
// adds one to it first).
func Philox4x64(key [2]uint64, ctr [4]uint64) [4]uint64 {
	for range philoxRounds {
		ctr[0], ctr[1], ctr[2], ctr[3] = philoxRound(ctr[0], ctr[1], ctr[2], ctr[3], &key)
		key[0] += philoxW0
		key[1] += philoxW1
	}
	return ctr
}

// Purposes, in the low 16 bits of the key, keep the words apart that
// are for different decisions.
const (
	purposeDraw        = 0 // draws tokens
	purposeProbability = 1 // decides which candidates are drawn
	purposeOrder       = 2 // orders candidates where there are too many
)

// key is the Philox key of an epoch for one purpose.
func (ep Epoch) key(purpose uint16) [2]uint64 {
	return [2]uint64{ep.Seed, uint64(ep.Epoch)<<32 + uint64(ep.Generation)<<16 + uint64(purpose)}
}

// drawStream yields the first word of the blocks (0, position, key low, key
// high) of one document: what Philox4x64 gives, less the work that does not
// depend on the position. The counter has one varying word, which needs three
// rounds to reach all four, and only one word of the last round is wanted: of
// the twenty products fifteen are left.
type drawStream struct {
	keys           [philoxRounds][2]uint64 // of each round; keys[0] is what they are all made from
	r1in           uint64                  // round 1, word 0, but for the position
	r1k            uint64
	r2hi, r2lo     uint64 // round 2: product of its constant word 0, round key mixed into hi
	r2word1        uint64 // round 2: its constant word 1, round key mixed in
	positionOffset uint64
}

// reset turns to a document. The stream of the document before may be used again: within an epoch the keys are the same.
func (s *drawStream) reset(key [2]uint64, doc Hash128, offset uint64) {
	if s.keys[0] != key || s.keys[1][0] != key[0]+philoxW0 { // another key, or none so far
		for r := range s.keys {
			s.keys[r] = key
			key[0] += philoxW0
			key[1] += philoxW1
		}
	}
	// Round 0 maps (0, p, lo, hi) to (h^p^k0, l, hi^k1, 0) with h, l = M1*lo.
	h, l := bits.Mul64(philoxM1, doc.Lo)
	s.r1in = h ^ s.keys[0][0]
	// Round 1 maps (r1in^p, l, c, 0) to (h'^l^k0, l', hi(M0*(r1in^p))^k1, lo(M0*(r1in^p))).
	h1, l1 := bits.Mul64(philoxM1, doc.Hi^s.keys[0][1])
	s.r1k = s.keys[1][1]
	// Round 2 finds its words 0 and 1 constant.
	h2, l2 := bits.Mul64(philoxM0, h1^l^s.keys[1][0])
	s.r2hi = h2 ^ s.keys[2][1]
	s.r2lo = l2
	s.r2word1 = l1 ^ s.keys[2][0]
	s.positionOffset = offset
}

// fill puts into words[c] the first word of the block of the token at index
// pos[which[c]].
func (s *drawStream) fill(words []uint64, which, pos []int32) {
	words = words[:len(which)]
	for c, j := range which {
		hi, lo := bits.Mul64(philoxM0, s.r1in^(uint64(pos[j])+s.positionOffset))
		c2, c3 := hi^s.r1k, lo
		hi, lo = bits.Mul64(philoxM1, c2)
		c0, c1, c2, c3 := hi^s.r2word1, lo, s.r2hi^c3, s.r2lo
		c0, c1, c2, c3 = philoxRound(c0, c1, c2, c3, &s.keys[3])
		c0, c1, c2, c3 = philoxRound(c0, c1, c2, c3, &s.keys[4])
		c0, c1, c2, c3 = philoxRound(c0, c1, c2, c3, &s.keys[5])
		c0, c1, c2, c3 = philoxRound(c0, c1, c2, c3, &s.keys[6])
		c0, c1, c2, c3 = philoxRound(c0, c1, c2, c3, &s.keys[7])
		_, c1, c2, _ = philoxRound(c0, c1, c2, c3, &s.keys[8])
		hi, _ = bits.Mul64(philoxM1, c2)
		words[c] = hi ^ c1 ^ s.keys[philoxRounds-1][0]
	}
}

// uniform turns a word into a float64 in [0, 1): its upper 53 bits.
func uniform(word uint64) float64 {
	return float64(int64(word>>11)) * 0x1p-53
}
