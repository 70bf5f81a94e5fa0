package prior

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// parts are what a fingerprint is made of, eight hex digits each, so that two fingerprints tell in what they differ.
var parts = []string{"weights", "tokenizer", "graph", "reading"}

const partDigits = 8

// Fingerprint is 32 hex digits over everything that decides a score or an edit, in four parts: the model's files; the
// tokenizer, the vocabulary and the special ids; the graph's options, dtype and device; context length, BOS rule and
// windows. Every row of scores carries it.
func (p *Prior) Fingerprint() string { return p.fingerprint }

func (p *Prior) computeFingerprint() string {
	var out strings.Builder
	for _, text := range p.partTexts() {
		sum := sha256.Sum256([]byte(text))
		out.WriteString(hex.EncodeToString(sum[:])[:partDigits])
	}
	return out.String()
}

// partTexts are the texts whose hashes the parts are, in the order of parts.
func (p *Prior) partTexts() [4]string {
	var texts [4]strings.Builder
	line := func(part int, key string, value any) { fmt.Fprintf(&texts[part], "%s=%v\n", key, value) }
	for _, name := range p.fileNames() {
		part := 0
		if name == TokenizerFile {
			part = 1
		}
		line(part, "file."+name, strings.ToLower(p.Files[name].SHA256))
	}
	line(1, "vocab_size", p.VocabSize)
	line(1, "tokenizer_size", p.TokenizerSize)
	special := slices.Clone(p.SpecialIDs)
	slices.Sort(special)
	line(1, "special_ids", special)
	line(2, "format", p.Format)
	line(2, "graph.version", p.Graph.Version)
	line(2, "graph.opset", p.Graph.Opset)
	line(2, "graph.attention", p.Graph.Attention)
	line(2, "graph.min_positions", p.Graph.MinPositions)
	if p.Graph.TF32 { // not in those of before, nor for the CPU
		line(2, "graph.tf32", true)
	}
	line(2, "device", p.Device)
	line(2, "dtype", p.DType)
	line(3, "context_length", p.ContextLength)
	line(3, "bos.rule", p.BOS.Rule)
	if p.BOS.ID != nil {
		line(3, "bos.id", *p.BOS.ID)
	}
	line(3, "windows", p.Reading.Windows)
	line(3, "min_context", p.Reading.MinContext)
	line(3, "cross_documents", p.Reading.CrossDocuments)
	return [4]string{texts[0].String(), texts[1].String(), texts[2].String(), texts[3].String()}
}

// Difference says in what two fingerprints differ, as "weights and graph"; "" where one is no fingerprint.
func Difference(a, b string) string {
	if len(a) != len(parts)*partDigits || len(b) != len(a) {
		return ""
	}
	var found []string
	for i, name := range parts {
		from, to := i*partDigits, (i+1)*partDigits
		if a[from:to] != b[from:to] {
			found = append(found, name)
		}
	}
	if n := len(found); n > 1 {
		return strings.Join(found[:n-1], ", ") + " and " + found[n-1]
	}
	return strings.Join(found, "")
}
