package editor

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// Random123's known answers for philox4x64-10: zeros, ones, digits of pi.
func TestPhiloxKnownAnswers(t *testing.T) {
	const ones = ^uint64(0)
	for _, c := range []struct {
		key  [2]uint64
		ctr  [4]uint64
		want [4]uint64
	}{
		{
			want: [4]uint64{0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b},
		},
		{
			key:  [2]uint64{ones, ones},
			ctr:  [4]uint64{ones, ones, ones, ones},
			want: [4]uint64{0x87b092c3013fe90b, 0x438c3c67be8d0224, 0x9cc7d7c69cd777b6, 0xa09caebf594f0ba0},
		},
		{
			key:  [2]uint64{0x452821e638d01377, 0xbe5466cf34e90c6c},
			ctr:  [4]uint64{0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89},
			want: [4]uint64{0xa528f45403e61d95, 0x38c72dbd566e9788, 0xa5a1610e72fd18b5, 0x57bd43b5e52b7fe6},
		},
	} {
		require.Equal(t, c.want, Philox4x64(c.key, c.ctr))
	}
}

func TestPhiloxEqualsNumPy(t *testing.T) {
	type vector struct {
		Key     [2]uint64
		Counter [4]uint64
		Block   [4]uint64
	}
	for _, v := range readLines[vector](t, "philox.jsonl") {
		require.Equal(t, v.Block, Philox4x64(v.Key, v.Counter))
	}
}

func TestDrawStreamEqualsPhilox(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var s drawStream // one for all: keys change, and stay, from one document to the next
	var ep Epoch
	for n := range 1000 {
		if n%3 != 1 {
			ep = Epoch{Seed: rng.Uint64(), Epoch: rng.Uint32(), Generation: uint16(rng.Uint32())}
		}
		doc := Hash128{Lo: rng.Uint64(), Hi: rng.Uint64()}
		offset := rng.Uint64()
		positions := []int32{0, 1, rng.Int32()}
		words := make([]uint64, len(positions))
		s.reset(ep.key(purposeDraw), doc, offset)
		s.fill(words, []int32{0, 1, 2}, positions)
		key := [2]uint64{ep.Seed, uint64(ep.Epoch)<<32 | uint64(ep.Generation)<<16}
		for i, p := range positions {
			require.Equal(t, Philox4x64(key, [4]uint64{0, uint64(p) + offset, doc.Lo, doc.Hi})[0], words[i])
		}
	}
}

func TestUniform(t *testing.T) {
	require.Equal(t, 0.0, uniform(1<<11-1))
	require.Equal(t, 0x1p-53, uniform(1<<11))
	require.Equal(t, 1-0x1p-53, uniform(^uint64(0)))
}
