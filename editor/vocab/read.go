package vocab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxGap is how many ids of a tokenizer.json may lack a token: real ones lack few, and an id out of a damaged file must not
// decide how much memory is asked for.
const maxGap = 1 << 16

// Read makes a table of a tokenizer.json, the file of the tokenizers library. It knows byte-level tokenizers (GPT-2's,
// Llama 3's), those that write a space as "▁" (SentencePiece's, with bytes like <0x0A>), WordPiece and WordLevel. Added
// tokens have the trait [Special], whether they are special or not, and their content as bytes.
//
// A WordPiece or WordLevel tokenizer leaves white space out, so there a token begins a word unless the prefix of
// continuations ("##", not part of its bytes) says otherwise.
func Read(tokenizerJSON []byte) (*Table, error) {
	var f file
	if err := json.Unmarshal(tokenizerJSON, &f); err != nil {
		return nil, fmt.Errorf("tokenizer.json cannot be read: %w", err)
	}
	tokens, err := f.Model.tokens()
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	names, special, err := byID(tokens, f.AddedTokens)
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	w, err := f.writing()
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	spellings := make([][]byte, len(names))
	for id, name := range names {
		spellings[id] = w.bytes(name)
	}
	for _, t := range f.AddedTokens {
		spellings[t.ID] = []byte(t.Content)
	}
	t := New(spellings, special)
	if w.words {
		t.beginWords(func(id int) bool { return w.continues(names[id]) })
	}
	return t, nil
}

// beginWords corrects the traits of tokens that have no white space in front although they begin a word.
func (t *Table) beginWords(continues func(id int) bool) {
	t.words = true
	for id := range t.traits {
		if t.traits[id]&Continues != 0 && !continues(id) {
			t.traits[id] ^= Continues | BeginsWord
		}
	}
}

// file is what is read of a tokenizer.json.
type file struct {
	AddedTokens  []addedToken `json:"added_tokens"`
	Normalizer   *part        `json:"normalizer"`
	PreTokenizer *part        `json:"pre_tokenizer"`
	Decoder      *part        `json:"decoder"`
	Model        model        `json:"model"`
}

type addedToken struct {
	ID      uint32 `json:"id"`
	Content string `json:"content"`
}

type model struct {
	Type         string          `json:"type"`
	Vocab        json.RawMessage `json:"vocab"`
	Merges       json.RawMessage `json:"merges"`
	Prefix       *string         `json:"continuing_subword_prefix"`
	Suffix       string          `json:"end_of_word_suffix"`
	ByteFallback bool            `json:"byte_fallback"`
	MaxInput     *int            `json:"max_input_chars_per_word"`
}

// kind is the model's type. Early versions of the tokenizers library did not write it.
func (m *model) kind() string {
	switch {
	case m.Type != "":
		return m.Type
	case m.Merges != nil:
		return "BPE"
	case m.MaxInput != nil:
		return "WordPiece"
	case bytes.HasPrefix(m.Vocab, []byte("[")):
		return "Unigram"
	}
	return "WordLevel"
}

// tokens are the model's tokens and their ids. An Unigram model lists them with their scores in the order of their ids.
func (m *model) tokens() (map[string]uint32, error) {
	var ids map[string]uint32
	if !bytes.HasPrefix(m.Vocab, []byte("[")) {
		if err := json.Unmarshal(m.Vocab, &ids); err != nil || ids == nil {
			return nil, errors.Join(errors.New("model.vocab is no table of tokens and ids"), err)
		}
		return ids, nil
	}
	var pieces [][]json.RawMessage
	if err := json.Unmarshal(m.Vocab, &pieces); err != nil {
		return nil, fmt.Errorf("model.vocab is no list of tokens and scores: %w", err)
	}
	ids = make(map[string]uint32, len(pieces))
	for id, piece := range pieces {
		var token *string
		if len(piece) > 0 {
			if err := json.Unmarshal(piece[0], &token); err != nil {
				return nil, fmt.Errorf("model.vocab: the token of id %d is no text: %w", id, err)
			}
		}
		if token == nil {
			return nil, fmt.Errorf("model.vocab: id %d has no token", id)
		}
		if other, ok := ids[*token]; ok {
			return nil, fmt.Errorf("model.vocab has the token %q twice, as ids %d and %d", *token, other, id)
		}
		ids[*token] = uint32(id)
	}
	return ids, nil
}

// byID lists the tokens in the order of their ids, and the ids that are special.
func byID(tokens map[string]uint32, added []addedToken) (names []string, special []uint32, err error) {
	size := 0
	count := func(id uint32, token string) error {
		if int64(id) >= int64(len(tokens)+len(added)+maxGap) {
			return fmt.Errorf("the token %q has id %d, but there are %d tokens", token, id, len(tokens)+len(added))
		}
		size = max(size, int(id)+1)
		return nil
	}
	for token, id := range tokens {
		err = errors.Join(err, count(id, token))
	}
	for _, t := range added {
		err = errors.Join(err, count(t.ID, t.Content))
		special = append(special, t.ID)
	}
	if err != nil {
		return nil, nil, err
	}
	names = make([]string, size)
	taken := make([]bool, size)
	for token, id := range tokens {
		if taken[id] {
			return nil, nil, fmt.Errorf("id %d belongs to two tokens, %q and %q", id, min(token, names[id]), max(token, names[id]))
		}
		names[id], taken[id] = token, true
	}
	return names, special, nil
}

// part is a normalizer, pre-tokenizer or decoder, or a sequence of them.
type part struct {
	Type          string `json:"type"`
	Normalizers   []part `json:"normalizers"`
	PreTokenizers []part `json:"pretokenizers"`
	Decoders      []part `json:"decoders"`
	Replacement   string `json:"replacement"`
	Content       string `json:"content"`
	Pattern       struct {
		String string `json:"String"`
	} `json:"pattern"`
}

// find is the first part for which is holds, in order of their work.
func (p *part) find(is func(*part) bool) *part {
	if p == nil || is(p) {
		return p
	}
	for _, parts := range [][]part{p.Normalizers, p.PreTokenizers, p.Decoders} {
		for i := range parts {
			if found := parts[i].find(is); found != nil {
				return found
			}
		}
	}
	return nil
}

func ofType(name string) func(*part) bool { return func(p *part) bool { return p.Type == name } }

// writing is how a tokenizer writes bytes of text as tokens.
type writing struct {
	byteLevel    bool
	space        string // stands for a space
	byteFallback bool   // <0x0A> is a byte
	words        bool   // white space is in no token
	prefix       string // of continuations, where words is true
}

func (f *file) writing() (writing, error) {
	for _, p := range []*part{f.Normalizer, f.PreTokenizer, f.Decoder} {
		if p.find(ofType("ByteLevel")) != nil {
			if f.Model.Suffix != "" {
				return writing{}, fmt.Errorf("the model marks the ends of words by %q; that the bytes of its tokens depend on what follows is not supported", f.Model.Suffix)
			}
			return writing{byteLevel: true}, nil
		}
	}
	if space := f.spaceMark(); space != "" {
		return writing{space: space, byteFallback: f.Model.ByteFallback || f.Decoder.find(ofType("ByteFallback")) != nil}, nil
	}
	switch kind := f.Model.kind(); kind {
	case "WordPiece":
		w := writing{words: true, prefix: "##"}
		if f.Model.Prefix != nil {
			w.prefix = *f.Model.Prefix
		}
		return w, nil
	case "WordLevel":
		return writing{words: true}, nil
	default:
		return writing{}, fmt.Errorf("the bytes of its tokens are not known: a %s model must be byte-level or write spaces as %q; others are WordPiece and WordLevel", kind, "▁")
	}
}

// spaceMark is what stands for a space in tokens, "" if nothing does.
func (f *file) spaceMark() string {
	for _, p := range []*part{f.PreTokenizer, f.Decoder} {
		if m := p.find(ofType("Metaspace")); m != nil {
			if m.Replacement == "" {
				return "▁"
			}
			return m.Replacement
		}
	}
	if r := f.Normalizer.find(func(p *part) bool { return p.Type == "Replace" && p.Pattern.String == " " && p.Content != "" }); r != nil {
		return r.Content
	}
	if r := f.Decoder.find(func(p *part) bool { return p.Type == "Replace" && p.Pattern.String != "" && p.Content == " " }); r != nil {
		return r.Pattern.String
	}
	return ""
}

// bytes are what a token stands for in text.
func (w *writing) bytes(token string) []byte {
	switch {
	case w.byteLevel:
		return byteLevelBytes(token)
	case w.words:
		return []byte(strings.TrimPrefix(token, w.continuation(token)))
	}
	if w.byteFallback && len(token) == len("<0x0A>") && strings.HasPrefix(token, "<0x") && token[5] == '>' {
		if b, err := strconv.ParseUint(token[3:5], 16, 8); err == nil {
			return []byte{byte(b)}
		}
	}
	return []byte(strings.ReplaceAll(token, w.space, " "))
}

// continuation is the prefix of a token that continues a word. The prefix alone is a token like any other.
func (w *writing) continuation(token string) string {
	if w.prefix == "" || len(token) == len(w.prefix) || !strings.HasPrefix(token, w.prefix) {
		return ""
	}
	return w.prefix
}

func (w *writing) continues(token string) bool { return w.continuation(token) != "" }

// byteOf is the byte that a character stands for in a byte-level token, -1 where it stands for none. GPT-2 writes bytes that
// are printable in Latin-1 as themselves, and the others, in order, as the characters from U+0100 on.
var byteOf = func() (table [256 + 68]int16) {
	for i := range table {
		table[i] = -1
	}
	next := 256
	for b := range 256 {
		c := b
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b != 0xAD) {
			c = next
			next++
		}
		table[c] = int16(b)
	}
	return table
}()

// byteLevelBytes are the bytes of a byte-level token; of one that has other characters, its own, as in the tokenizers library.
func byteLevelBytes(token string) []byte {
	out := make([]byte, 0, len(token))
	for _, c := range token {
		if int(c) >= len(byteOf) || byteOf[c] < 0 {
			return []byte(token)
		}
		out = append(out, byte(byteOf[c]))
	}
	return out
}
