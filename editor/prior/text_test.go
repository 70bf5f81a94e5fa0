package prior

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	const tokens = `{"model": {"type": "WordPiece", "vocab": {"a": 0, "##b": 1}}}`
	withTokens := func(s map[string]any) {
		in(s, "files")[TokenizerFile] = map[string]any{"sha256": sum(tokens), "size": len(tokens)}
	}
	dir := folder(t, withTokens)
	write(t, dir, TokenizerFile, tokens)
	p, err := Open(dir)
	require.NoError(t, err)

	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			table, err := p.Text()
			assert.NoError(t, err)
			assert.Equal(t, "b", string(table.Bytes(1)))
		})
	}
	all.Wait()
	first, err := p.Text()
	require.NoError(t, err)
	write(t, dir, TokenizerFile, "other")
	kept, err := p.Text()
	require.NoError(t, err)
	assert.Same(t, first, kept)
}

func TestTextRefuses(t *testing.T) {
	p, err := Open(folder(t, nil))
	require.NoError(t, err)
	_, err = p.Text()
	assert.ErrorContains(t, err, p.Dir)
	assert.ErrorContains(t, err, "cannot be read")

	write(t, p.Dir, TokenizerFile, "other")
	_, err = p.Text()
	assert.ErrorContains(t, err, "was changed after the prior was opened")
}
