// Package prior reads prior folders: what the model is, which ids it knows, and the fingerprint that ties scores to it.
//
// It never opens the model itself (package scorer does), so editing from stored scores needs no ONNX Runtime.
package prior

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"toedit/editor"
)

// Format is the version of the folder layout that this package reads.
const Format = 1

// GraphVersion is the version of the graph's inputs and outputs that package scorer feeds and reads.
const GraphVersion = 1

// The model and the settings file of every prior folder.
const (
	ModelFile     = "model.onnx"
	TokenizerFile = "tokenizer.json"
	SettingsFile  = "prior.json"
)

// File is what prior.json remembers of one file in the folder.
type File struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// BOS is the rule for the first token of a row.
type BOS struct {
	// Rule "always": a row that does not begin with ID is scored with ID in front of it, so that its first token has a
	// score. Rule "never": nothing is put in front and a row's first token stays unscored.
	Rule string  `json:"rule"`
	ID   *uint32 `json:"id"`
}

// Graph says how the model file is to be run.
type Graph struct {
	Version   int    `json:"version"`
	Opset     int    `json:"opset"`
	Attention string `json:"attention"`
	// MinPositions is the least length that rows are padded to: some kernels round otherwise below it. 0 is none.
	MinPositions int `json:"min_positions"`
	// TF32 says that a card may compute the graph's float32 products in TensorFloat-32.
	TF32 bool `json:"tf32"`
}

// Memory says how many bytes a run needs beside the weights, about: for each position, for each pair of positions of a row
// (attention), and whatever its size. It bounds runs and decides no score.
type Memory struct {
	Position int64 `json:"position"`
	Pair     int64 `json:"pair"`
	Fixed    int64 `json:"fixed"`
}

// The devices that a prior can be exported for. DeviceElsewhere: the folder has no graph; scores are made by other means.
const (
	DeviceCPU       = "cpu"
	DeviceCUDA      = "cuda"
	DeviceElsewhere = "elsewhere"
)

// Prior is a prior folder, read and checked.
type Prior struct {
	Dir           string          `json:"-"`
	Format        int             `json:"format"`
	Name          string          `json:"name"`
	Architecture  string          `json:"architecture"`
	Device        string          `json:"device"`
	DType         string          `json:"dtype"`
	ContextLength int             `json:"context_length"`
	VocabSize     int             `json:"vocab_size"`
	TokenizerSize int             `json:"tokenizer_size"`
	SpecialIDs    []uint32        `json:"special_ids"`
	BOS           BOS             `json:"bos"`
	K             int             `json:"k"`
	Graph         Graph           `json:"graph"`
	Memory        Memory          `json:"memory"`
	Files         map[string]File `json:"files"`
	Check         json.RawMessage `json:"check"` // how far its scores are from the model's, as the export measured it
	Reading       Reading         `json:"-"`     // how it was opened, nothing left to default

	fingerprint string
	text        text
}

// Open is OpenAs with the default reading.
func Open(dir string) (*Prior, error) { return OpenAs(dir, Reading{}) }

// OpenAs reads dir/prior.json, checks that the small files are the ones that it names and that the large ones are whole
// (by size; VerifyModel reads them), and computes the fingerprint.
func OpenAs(dir string, reading Reading) (*Prior, error) {
	raw, err := os.ReadFile(filepath.Join(dir, SettingsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a prior folder: it has no %s; make one with `toedit export MODEL -o DIR`", dir, SettingsFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the prior's settings: %w", err)
	}
	p := &Prior{Dir: dir}
	if err := json.Unmarshal(raw, p); err != nil {
		return nil, fmt.Errorf("%s in %s cannot be read (%w); the folder is damaged, export the prior again", SettingsFile, dir, err)
	}
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("prior %s: %w", dir, err)
	}
	if p.SpecialIDs == nil {
		p.SpecialIDs = []uint32{} // "none" is a list too, for whoever reads it as JSON
	}
	for _, name := range p.fileNames() {
		want := p.Files[name]
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("prior %s: its file %s is missing; export the prior again", dir, name)
		}
		if info.Size() != want.Size {
			return nil, fmt.Errorf("prior %s: %s has %d bytes, but %s says %d; the folder is truncated or mixed up, export the prior again",
				dir, name, info.Size(), SettingsFile, want.Size)
		}
	}
	if err := p.verify(TokenizerFile); err != nil {
		return nil, err
	}
	if p.Reading, err = reading.resolve(p.ContextLength); err != nil {
		return nil, fmt.Errorf("prior %s: %w", dir, err)
	}
	p.fingerprint = p.computeFingerprint()
	return p, nil
}

func (p *Prior) validate() error {
	field := func(name string, value any, want string) error {
		return fmt.Errorf("%s: %s is %v, but must be %s; export the prior again with this version of toedit", SettingsFile, name, value, want)
	}
	switch {
	case p.Format != Format:
		return field("format", p.Format, fmt.Sprint(Format))
	case p.Graph.Version != GraphVersion:
		return field("graph.version", p.Graph.Version, fmt.Sprint(GraphVersion))
	case p.Device != DeviceCPU && p.Device != DeviceCUDA && p.Device != DeviceElsewhere:
		return field("device", fmt.Sprintf("%q", p.Device), `"cpu", "cuda" or "elsewhere"`)
	case p.ContextLength < 2:
		return field("context_length", p.ContextLength, "at least 2")
	case p.VocabSize < 2 || p.VocabSize > 1<<31-1:
		return field("vocab_size", p.VocabSize, "2 to 2147483647")
	case p.TokenizerSize < 1 || p.TokenizerSize > p.VocabSize:
		return field("tokenizer_size", p.TokenizerSize, fmt.Sprintf("1 to vocab_size = %d", p.VocabSize))
	case p.K < 1 || p.K > p.VocabSize:
		return field("k", p.K, fmt.Sprintf("1 to vocab_size = %d", p.VocabSize))
	case p.BOS.Rule != "always" && p.BOS.Rule != "never":
		return field("bos.rule", fmt.Sprintf("%q", p.BOS.Rule), `"always" or "never"`)
	case p.BOS.Rule == "always" && p.BOS.ID == nil:
		return field("bos.id", "null", `an id where bos.rule is "always"`)
	case p.BOS.ID != nil && int(*p.BOS.ID) >= p.VocabSize:
		return field("bos.id", *p.BOS.ID, fmt.Sprintf("below vocab_size = %d", p.VocabSize))
	}
	if p.Graph.MinPositions < 0 || p.Graph.MinPositions > p.ContextLength {
		return field("graph.min_positions", p.Graph.MinPositions, fmt.Sprintf("0 to context_length = %d", p.ContextLength))
	}
	if p.Memory.Position < 0 || p.Memory.Pair < 0 || p.Memory.Fixed < 0 {
		return field("memory", p.Memory, "numbers of bytes")
	}
	for _, id := range p.SpecialIDs {
		if int(id) >= p.VocabSize {
			return field("special_ids", id, fmt.Sprintf("below vocab_size = %d", p.VocabSize))
		}
	}
	wanted := []string{ModelFile, TokenizerFile}
	if p.Device == DeviceElsewhere {
		wanted = wanted[1:]
	}
	for _, name := range wanted {
		if _, ok := p.Files[name]; !ok {
			return field("files", "without "+name, "a table with "+name)
		}
	}
	for _, name := range p.fileNames() {
		f := p.Files[name]
		// A name with a directory in it could point anywhere on the machine.
		if name != filepath.Base(name) || name == ".." || name == "." {
			return field("files", fmt.Sprintf("%q", name), "plain file names")
		}
		if b, err := hex.DecodeString(f.SHA256); err != nil || len(b) != sha256.Size {
			return field("files."+name+".sha256", fmt.Sprintf("%q", f.SHA256), "64 hex digits")
		}
	}
	return nil
}

// VerifyModel reads every file that prior.json lists and compares its SHA-256, so that scores are only ever made by the
// weights that the fingerprint names.
func (p *Prior) VerifyModel() error {
	for _, name := range p.fileNames() {
		if err := p.verify(name); err != nil {
			return err
		}
	}
	return nil
}

// fileNames are the names in Files in order: what is hashed, and which error comes first, must not change from run to run.
func (p *Prior) fileNames() []string { return slices.Sorted(maps.Keys(p.Files)) }

func (p *Prior) verify(name string) error {
	f, err := os.Open(filepath.Join(p.Dir, name))
	if err != nil {
		return fmt.Errorf("prior %s: %w", p.Dir, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("prior %s: reading %s: %w", p.Dir, name, err)
	}
	if got, want := hex.EncodeToString(h.Sum(nil)), p.Files[name].SHA256; !strings.EqualFold(got, want) {
		return fmt.Errorf("prior %s: %s has SHA-256 %s, but %s says %s; the file was changed or belongs to another prior, export the prior again",
			p.Dir, name, got, SettingsFile, want)
	}
	return nil
}

// ModelPath is where ONNX Runtime finds the graph.
func (p *Prior) ModelPath() string { return filepath.Join(p.Dir, ModelFile) }

// Vocabulary is what the editor needs to know of the prior's ids.
func (p *Prior) Vocabulary() editor.Vocabulary {
	return editor.Vocabulary{ModelSize: p.VocabSize, TokenizerSize: p.TokenizerSize, Special: slices.Clone(p.SpecialIDs)}
}
