package capi

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"toedit/capi/internal/foreign"
)

// Handlers that foreign code has put in place of others are put back, and only those are touched.
func TestSignalHandlersAreKept(t *testing.T) {
	const sigusr2 = 12
	before := foreign.Handler(sigusr2)
	restore := keepSignals()
	foreign.ReplaceHandler(sigusr2)
	assert.NotEqual(t, before, foreign.Handler(sigusr2))
	restore()
	assert.Equal(t, before, foreign.Handler(sigusr2))
}
