package editor

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// Hash128 is an XXH3-128 hash: of a document's ids, or of its key.
type Hash128 struct{ Lo, Hi uint64 }

// HashBytes is the XXH3-128 of bytes: ids as little-endian uint32, or a key's
// UTF-8.
func HashBytes(b []byte) Hash128 {
	h := xxh3.Hash128(b)
	return Hash128{Lo: h.Lo, Hi: h.Hi}
}

// HashInt64 is the XXH3-128 of an integer key as eight little-endian bytes.
func HashInt64(v int64) Hash128 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(v))
	return HashBytes(b[:])
}

// hashIDs is the document hash of ids.
func hashIDs(ids []uint32) Hash128 {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return HashBytes(b)
}
