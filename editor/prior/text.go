package prior

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"toedit/editor/vocab"
)

// text is the tokens of a prior's tokenizer, read when somebody asks for them: editing by ids alone has no use for them.
type text struct {
	mu    sync.Mutex
	table *vocab.Table
}

// Text is what the prior's tokens look like, read from its tokenizer.json at the first call. It is safe for concurrent use.
func (p *Prior) Text() (*vocab.Table, error) {
	p.text.mu.Lock()
	defer p.text.mu.Unlock()
	if p.text.table != nil {
		return p.text.table, nil
	}
	raw, err := os.ReadFile(filepath.Join(p.Dir, TokenizerFile))
	if err != nil {
		return nil, fmt.Errorf("prior %s: %w", p.Dir, err)
	}
	// It was the right one when the folder was opened.
	if sum := sha256.Sum256(raw); !strings.EqualFold(hex.EncodeToString(sum[:]), p.Files[TokenizerFile].SHA256) {
		return nil, fmt.Errorf("prior %s: %s was changed after the prior was opened; export the prior again", p.Dir, TokenizerFile)
	}
	table, err := vocab.Read(raw)
	if err != nil {
		return nil, fmt.Errorf("prior %s: %w", p.Dir, err)
	}
	p.text.table = table
	return table, nil
}
