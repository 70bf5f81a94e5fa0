package editor

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Scores are one document's scores, as views into memory of the caller's.
// Fields are named after those of the scores struct.
type Scores struct {
	LogP []float32 // ln P of every token
	// Valid is an Arrow validity bitmap, least significant bit first: bit
	// ValidOffset+i says whether LogP[i] is there. A nil Valid means all are.
	Valid       []byte
	ValidOffset int
	NullCount   int       // as the caller knows it, or not (-1): Valid decides
	TopPos      []int32   // the positions whose top-k is stored, ascending
	TopIDs      []int32   // K for each of them, most probable first
	TopLogP     []float32 // theirs, float16 values
	K           int
	IDsHash     uint64 // low half of the hash of the ids that were scored
}

// valid says whether LogP[i] is there.
func (s *Scores) valid(i int) bool {
	if s.Valid == nil {
		return true
	}
	bit := s.ValidOffset + i
	return s.Valid[bit>>3]>>(bit&7)&1 != 0
}

// check finds what is wrong with the lengths and the hash.
func (s *Scores) check(d *Document, k int) error {
	n := len(d.IDs)
	if len(s.LogP) != n {
		return scoresErrorf("logp", "has %d values for %d ids: the scores were cut or belong to another row; cut scores together with their ids, or score again", len(s.LogP), n)
	}
	if n > math.MaxInt32 {
		return scoresErrorf("input_ids", "has %d ids; a row may have %d: split the document and give its parts a key and an offset", n, math.MaxInt32)
	}
	if s.IDsHash != d.Hash.Lo {
		return scoresErrorf("ids_hash", "is %016x, but the hash of these ids is %016x: the scores belong to other ids; score these ids again", s.IDsHash, d.Hash.Lo)
	}
	if d.Protected != nil && len(d.Protected) != n {
		return scoresErrorf("input_ids", "has %d ids, but the protected mask has %d values; give one for each id", n, len(d.Protected))
	}
	if s.Valid != nil && (s.ValidOffset < 0 || s.ValidOffset > math.MaxInt-n-7 || (s.ValidOffset+n+7)>>3 > len(s.Valid)) {
		return scoresErrorf("logp", "has a validity bitmap of %d bytes, too short for %d values from bit %d; build the array anew", len(s.Valid), n, s.ValidOffset)
	}
	if n > 0 && s.K < k {
		return scoresErrorf("k", "is %d: the scores hold fewer tokens a position than the policy's k of %d; score with k=%d or lower the policy's", s.K, k, k)
	}
	stored := len(s.TopPos)
	if s.K < 0 || !lengthIs(len(s.TopIDs), stored, s.K) {
		return scoresErrorf("topk_ids", "has %d values for %d positions of k = %d; score again", len(s.TopIDs), stored, s.K)
	}
	if !lengthIs(len(s.TopLogP), stored, s.K) {
		return scoresErrorf("topk_logp", "has %d values for %d positions of k = %d; score again", len(s.TopLogP), stored, s.K)
	}
	return nil
}

// lengthIs is n == rows*k, safe from overflow.
func lengthIs(n, rows, k int) bool {
	hi, lo := bits.Mul64(uint64(rows), uint64(k))
	return hi == 0 && lo == uint64(n)
}

// validWord is bits i..i+63 of the validity of n values from bit offset; past
// the end they are ones.
func validWord(bitmap []byte, offset, n, i int) uint64 {
	at := offset + i
	b := bitmap[at>>3:]
	var w uint64
	if len(b) >= 9 {
		w = binary.LittleEndian.Uint64(b)>>(at&7) | uint64(b[8])<<(64-at&7)
		if at&7 == 0 {
			w = binary.LittleEndian.Uint64(b)
		}
	} else {
		for j := len(b) - 1; j > 0; j-- {
			w = w<<8 | uint64(b[j])
		}
		w = w<<(8-at&7) | uint64(b[0])>>(at&7)
	}
	if left := n - i; left < 64 {
		w |= ^uint64(0) << left
	}
	return w
}
