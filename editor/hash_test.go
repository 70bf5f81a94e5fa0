package editor

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHashEqualsXxhash(t *testing.T) {
	type vector struct {
		Length    int
		Low, High uint64
	}
	for _, v := range readLines[vector](t, "xxh3.jsonl") {
		b := make([]byte, v.Length)
		for i := range b {
			b[i] = byte(131*i + 7)
		}
		require.Equal(t, Hash128{Lo: v.Low, Hi: v.High}, HashBytes(b), "%d bytes", v.Length)
	}
}

func TestHashInt64IsItsBytes(t *testing.T) {
	require.Equal(t, HashBytes([]byte{0xfe, 255, 255, 255, 255, 255, 255, 255}), HashInt64(-2))
	require.Equal(t, HashBytes([]byte{0x34, 0x12, 0, 0, 0, 0, 0, 0}), HashInt64(0x1234))
}
