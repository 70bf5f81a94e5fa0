package editor

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"toedit/editor/vocab"
)

// markup is a row of tokens: bars stand between them, those to be protected are in «», and special ones in <>.
type markup string

// tokens are the row's tokens, and which of them are marked.
func (m markup) tokens() (tokens []string, marked []bool) {
	for _, token := range strings.Split(string(m), "|") {
		bare, isMarked := strings.CutPrefix(token, "«")
		tokens = append(tokens, strings.TrimSuffix(bare, "»"))
		marked = append(marked, isMarked)
	}
	return tokens, marked
}

// show writes tokens as a markup.
func show(tokens []string, marked []bool) markup {
	shown := slices.Clone(tokens)
	for i := range shown {
		if marked[i] {
			shown[i] = "«" + shown[i] + "»"
		}
	}
	return markup(strings.Join(shown, "|"))
}

// wordsVocabulary has the tokens as its ids, of which those in <> are special.
func wordsVocabulary(tokens []string) Vocabulary {
	v := Vocabulary{ModelSize: len(tokens) + 2, TokenizerSize: len(tokens)}
	spellings := make([][]byte, len(tokens))
	for i, token := range tokens {
		spellings[i] = []byte(token)
		if strings.HasPrefix(token, "<") {
			v.Special = append(v.Special, uint32(i))
		}
	}
	v.Text = vocab.New(spellings, v.Special)
	return v
}

// protectedBy marks the tokens of a row that a policy protects for where they stand.
func protectedBy(t testing.TB, change func(*Policy), tokens []string) []bool {
	t.Helper()
	e, err := New(testPolicy(change), wordsVocabulary(tokens))
	require.NoError(t, err)
	ids := make([]uint32, len(tokens))
	for i := range ids {
		ids[i] = uint32(i)
	}
	return e.protect(&Document{IDs: ids}, new(Plan))
}

func requireProtects(t *testing.T, change func(*Policy), rows ...markup) {
	t.Helper()
	for _, row := range rows {
		tokens, _ := row.tokens()
		require.Equal(t, row, show(tokens, protectedBy(t, change, tokens)))
	}
}

func TestSubwords(t *testing.T) {
	requireProtects(t, func(p *Policy) { p.ProtectSubwords = true },
		"The| cat| sat|.",
		"«The»|«re»| was",
		"« un»|«believ»|«able»|,| it| was",
		"«un»|«able»|\n|«un»|«able»",
		"« 20»|«24»|-|«0»|«5»",
		"don|'t| go",                // an apostrophe is no letter
		"« don't»|«s»| go",          // whatever stands inside the token
		"a|<x>|b",                   // a special token is no part of a word
		" |word| |word",             // white space in a token of its own: a word of one token
		"« \xc3»|«\xa9»|«t»|«\xc3»", // parts of characters
		"«日»|«本»|。|x",
	)
}

func TestCode(t *testing.T) {
	requireProtects(t, func(p *Policy) { p.ProtectCode = true },
		"no| code| here|\n| at| `all`",
		"«```»|«py»|«\n»|«x»|« =»|« 1»|«\n»|«```»",
		"text|«\n»|«```»|«\n»|«x»|«\n»|«```»|«\n»|text",           // and the line endings, without which they are no fences
		"text|«\n\n»|«``»|«`»|«x»|«\n\n»|«```\n\n»|more",          // tokens that reach over the edge
		"a|«\n»|«~~~»|«~ a`b»|«\n»|«```»|«\n»|«~~~~»|«\r\n»|b",    // as long at least, of the same kind
		"a|«\n»|«````»|«\n»|«```»|«\n»|«x»",                       // never closed: to the end
		"a|«\n»|«```»|«\n»|«x»|«\n»|«```»|« y»|«\n»|«```»|«\r»|b", // what closes has nothing behind it
		"a|«\n»|«   »|«```»|«\n»|«x»|«\n»|«  ```»|« \t»|«\n»|b|\n|c",
		"a|\n|    |```|\n|x|\n", // four spaces in front
		"a|\n|\t|```|\n|x|\n",   // a tab
		"a|\n|``| x|\n|b",       // too short
		"a|\n|```| x| ```|\n|b", // code in a line
		"a| ```|\n|b",           // not at its beginning
		"«```»|«\n»|«x»|<eos>|b|«\n»|«```»|«\n»|«c»", // a special token ends the text, and another begins
		"<s>|«```»|«\n»|«  »|«x»|«\n»|«```»|«\n»|b|«\n»|«```»|«\n»|«c»",
	)
}

// Runs of white space are text, although some tokenizers have them as added tokens.
func TestAddedWhiteSpaceIsText(t *testing.T) {
	tokens := []string{"```", "\n", "    ", "x", "\n```\n", "y", "</s>", "y"}
	v := wordsVocabulary(tokens)
	spellings := make([][]byte, len(tokens))
	for i, token := range tokens {
		spellings[i] = []byte(token)
	}
	v.Text = vocab.New(spellings, []uint32{2, 6})
	e, err := New(testPolicy(func(p *Policy) { p.ProtectCode = true }), v)
	require.NoError(t, err)
	marks := e.protect(&Document{IDs: []uint32{0, 1, 2, 3, 4, 5, 0, 3, 6, 3}}, new(Plan))
	require.Equal(t, []bool{true, true, true, true, true, false, false, false, false, false}, marks)
	marks = e.protect(&Document{IDs: []uint32{0, 1, 2, 3, 6, 3, 100, 0, 3}}, new(Plan))
	require.Equal(t, []bool{true, true, true, true, false, false, false, true, true}, marks, "an id without text parts texts too")
}

func TestWords(t *testing.T) {
	requireProtects(t, func(p *Policy) {
		p.ProtectedWords = []string{"York", "New York", "York City Hall", "C++", "été", "日本", "7", "...", "a.b"}
	},
		"«York»|,| a| new| city",
		"in| |«Yo»|«rk»| x",                    // any tokens
		"in|« New»|« York»|« City»|« Hall»|.",  // one begins inside the other
		"in|« New»|« York»| City| Hall|s",      // another word
		"in| New|\n|«York»|\n| York|ers| york", // as written, white space and case included
		"New| |« York»",
		"«C+»|«+»| C+|+11| C|x",
		"«ét»|«é»|, étés|日本|人|「|«日»|«本»|」",
		"«7»|-|77|-|«7,»|0|7|7",
		"x|.|«.»|«.»|«.»| ..", // no letter may stand in front
		"«a»|«.»|«b»|.|a|.b|x",
		"Yo|<x>|rk|<x>|«York»|<x>|«York»", // special tokens are no text, and end words
		"York|\xc3|York|.|«York»",         // a part of a character counts as a letter
	)
	requireProtects(t, func(p *Policy) { p.ProtectedWords = []string{"the"} }, "The| other| theme|, bathe|« the»|.|«the»")
}

// Tokenizers of words leave white space out: a token that begins a word is taken to have a space in front, and line endings,
// which fences need, are gone.
func TestTextWithoutWhiteSpace(t *testing.T) {
	table, err := vocab.Read([]byte(`{"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
		"vocab": {"[UNK]": 0, "new": 1, "york": 2, "##er": 3, ".": 4, "\u0060": 5}}}`))
	require.NoError(t, err)
	v := Vocabulary{ModelSize: 6, TokenizerSize: 6, Text: table}
	e, err := New(testPolicy(func(p *Policy) { p.ProtectedWords = []string{"new york", "york."} }), v)
	require.NoError(t, err)
	marks := e.protect(&Document{IDs: []uint32{1, 2, 3, 1, 2, 2, 4, 1}}, new(Plan))
	require.Equal(t, []bool{false, false, false, true, true, true, true, false}, marks)
	_, err = New(testPolicy(func(p *Policy) { p.ProtectCode = true }), v)
	require.ErrorContains(t, err, "policy: protect_code is true, but the prior's tokenizer leaves out line endings")
}

// plainText finds what is protected of a text by the definitions, byte by byte.
type plainText struct {
	text []byte
	of   []int // the token that each byte is of
}

func (p *plainText) add(token int, text []byte) {
	p.text = append(p.text, text...)
	for range text {
		p.of = append(p.of, token)
	}
}

func (p *plainText) mark(marks []bool, from, to int) {
	for _, token := range p.of[from:to] {
		marks[token] = true
	}
}

var (
	lineOf   = regexp.MustCompile(`[^\r\n]*(\r\n|\r|\n|$)`)
	backtick = regexp.MustCompile("^ {0,3}(```+)[^`\r\n]*[\r\n]*$")
	tilde    = regexp.MustCompile("^ {0,3}(~~~+)")
	closing  = regexp.MustCompile("^ {0,3}(```+|~~~+)[ \t]*[\r\n]*$")
)

func (p *plainText) markCode(marks []bool) {
	open, from := "", 0
	for _, at := range lineOf.FindAllIndex(p.text, -1) {
		line := string(p.text[at[0]:at[1]])
		if open == "" {
			for _, opening := range []*regexp.Regexp{backtick, tilde} {
				if found := opening.FindStringSubmatch(line); found != nil {
					open, from = found[1], max(at[0]-1, 0)
				}
			}
		} else if found := closing.FindStringSubmatch(line); found != nil && strings.HasPrefix(found[1], open) {
			p.mark(marks, from, at[1])
			open = ""
		}
	}
	if open != "" {
		p.mark(marks, from, len(p.text))
	}
}

func (p *plainText) markWords(words []string, marks []bool) {
	letter := func(r rune, size int) bool {
		return unicode.In(r, unicode.L, unicode.M, unicode.N) || r == utf8.RuneError && size == 1
	}
	for _, word := range words {
		for at := range p.text {
			rest, found := bytes.CutPrefix(p.text[at:], []byte(word))
			if found && !letter(utf8.DecodeLastRune(p.text[:at])) && !letter(utf8.DecodeRune(rest)) {
				p.mark(marks, at, at+len(word))
			}
		}
	}
}

// protectPlainly is what protect does, by the definitions.
func protectPlainly(e *Editor, d *Document) []bool {
	p, t := &e.policy, e.vocabulary.Text
	marks := make([]bool, len(d.IDs))
	copy(marks, d.Protected)
	for i := range d.IDs {
		marks[i] = marks[i] || d.Offset+uint64(i) < uint64(p.ProtectFirst)
		if p.ProtectSubwords && i > 0 && t.Traits(d.IDs[i-1])&vocab.EndsInside != 0 && t.Traits(d.IDs[i])&vocab.Continues != 0 {
			marks[i-1], marks[i] = true, true
		}
	}
	var texts []*plainText
	parted := true
	for i, id := range d.IDs {
		text := t.Bytes(id)
		if t.Traits(id)&vocab.Special != 0 && string(text) != "    " || int(id) >= t.Size() {
			parted = true
			continue
		}
		if parted {
			texts = append(texts, new(plainText))
			parted = false
		}
		texts[len(texts)-1].add(i, text)
	}
	for _, text := range texts {
		if p.ProtectCode {
			text.markCode(marks)
		}
		text.markWords(p.ProtectedWords, marks)
	}
	return marks
}

// bytesVocabulary has single bytes as its tokens, and in place of some control characters special tokens and tokens of
// several bytes. So any text is a row of its ids.
var bytesVocabulary = func() Vocabulary {
	spellings := make([][]byte, 256)
	for i := range spellings {
		spellings[i] = []byte{byte(i)}
	}
	for i, token := range []string{"<s>", "    ", "```\n", "\n```", "~~~~", "the", " the", "York", "New "} {
		spellings[i] = []byte(token)
	}
	for i, token := range []string{"\r\n", "\n\n", "0.5", " - ", "é", "x\n"} {
		spellings[14+i] = []byte(token)
	}
	v := Vocabulary{ModelSize: 260, TokenizerSize: 256, Special: []uint32{0, 1}}
	v.Text = vocab.New(spellings, v.Special)
	return v
}()

// textPolicy protects by text and position, a bit for each setting.
func textPolicy(settings byte) Policy {
	p := PaperPolicy()
	p.ProtectSubwords = settings&1 != 0
	p.ProtectCode = settings&2 != 0
	if settings&4 != 0 {
		p.ProtectedWords = []string{"the", "York", "New York", "C++", "...", "a.b", "é", "`"}
	}
	p.ProtectFirst = int(settings >> 3 & 3)
	return p
}

// Whatever the tokens, what is protected is what the definitions say.
func FuzzProtect(f *testing.F) {
	editors := make([]*Editor, 32)
	for settings := range editors {
		p := textPolicy(byte(settings))
		p.WholeWords = true // so that every policy has text
		e, err := New(p, bytesVocabulary)
		require.NoError(f, err)
		editors[settings] = e
	}
	for _, text := range []string{
		"", "the New York of the C++..., a.b", "a\n```py\nx\n```\nb", "~~~\n```\n~~~~ \n   ``` `\n    ```\n\t~~~", "\x02x\x03\x0f\x00\x03\r```\r\x01```",
		"the\xc3\xa9, \xc3\xa9", "caf\xc3\xa9s the\xff.the",
	} {
		for _, settings := range []byte{0, 1, 2, 4, 15} {
			f.Add(settings, []byte(text))
		}
	}
	var plan Plan
	f.Fuzz(func(t *testing.T, settings byte, text []byte) {
		d := &Document{Offset: uint64(settings >> 5)}
		for _, b := range text {
			d.IDs = append(d.IDs, uint32(b))
		}
		if len(text) > 10 {
			d.IDs[9] = 256 + uint32(text[9]&3) // beyond the tokenizer
			d.Protected = make([]bool, len(text))
			d.Protected[10] = true
		}
		e := editors[settings&31]
		require.True(t, slices.Equal(protectPlainly(e, d), e.protect(d, &plan)))
	})
}

// textVocabulary is testVocabulary with text.
var textVocabulary = func() Vocabulary {
	v := testVocabulary
	spellings := make([][]byte, testTokenizerSize)
	pieces := []string{" w%d", "w", " word", ",", "\n", "%d", "```", " .", "ing", "é", "\n```\n", " York"}
	for i := range spellings {
		piece := pieces[i%len(pieces)]
		if strings.Contains(piece, "%d") {
			piece = fmt.Sprintf(piece, i)
		}
		spellings[i] = []byte(piece)
	}
	v.Text = vocab.New(spellings, v.Special)
	return v
}()

// What is protected stays, and what may not be drawn is not, whatever the policy.
func TestProtectedTokensStay(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 31))
	var plan Plan
	var total Counts
	for range 100 {
		random := make([]byte, 24)
		for i := range random {
			random[i] = byte(rng.Uint32())
		}
		p := (&fuzzReader{random}).policy()
		p.K, p.ProtectedIDs = min(p.K, testK), p.ProtectedIDs[:min(len(p.ProtectedIDs), 2)]
		p.Bands[0].Low = max(p.Bands[0].Low, 0.3) // where the top-k is stored
		p.Bands = p.Bands[:1]
		flags := rng.Uint32()
		text := textPolicy(byte(flags))
		p.ProtectSubwords, p.ProtectCode, p.ProtectedWords, p.ProtectFirst = text.ProtectSubwords, text.ProtectCode, text.ProtectedWords, text.ProtectFirst
		p.ProtectDigits, p.ProtectPunctuation, p.WholeWords = flags>>8&1 != 0, flags>>9&1 != 0, flags>>10&1 != 0
		e, err := New(p, textVocabulary)
		require.NoError(t, err)
		spelled := func(id uint32) string { return string(textVocabulary.Text.Bytes(id)) }
		never := func(id uint32) bool {
			return p.ProtectSpecial && slices.Contains(textVocabulary.Special, id) || slices.Contains(p.ProtectedIDs, int64(id)) || id >= testTokenizerSize ||
				!slices.Contains(textVocabulary.Special, id) && (p.ProtectDigits && strings.ContainsAny(spelled(id), "0123456789") ||
					p.ProtectPunctuation && strings.Trim(spelled(id), " \n") != "" && strings.Trim(spelled(id), " \n,.`") == "")
		}
		for range 5 {
			d := randomDocument(rng, 100)
			d.Offset = uint64(rng.IntN(3))
			d.Protected = make([]bool, len(d.IDs))
			for i := range d.Protected {
				d.Protected[i] = rng.IntN(8) == 0
			}
			marks := protectPlainly(e, d)
			counts, err := e.Plan(Epoch{Seed: 3}, d, &plan)
			require.NoError(t, err)
			var protected int64
			for i, id := range d.IDs {
				if d.Scores.valid(i) && inABand(e, d.Scores.LogP[i]) && (marks[i] || never(id)) {
					protected++
				}
			}
			require.Equal(t, protected, counts.Protected)
			for _, edit := range plan.Edits {
				require.False(t, marks[edit.Pos])
				require.False(t, never(edit.Old), "%q", spelled(edit.Old))
				require.False(t, never(edit.New), "%q", spelled(edit.New))
				if p.WholeWords {
					require.Equal(t, wordClass(edit.Old), wordClass(edit.New), "%q %q", spelled(edit.Old), spelled(edit.New))
				}
			}
			total.Add(counts)
		}
	}
	require.Greater(t, total.Changes, int64(100))
	require.Greater(t, total.Protected, int64(1000))
}

// wordClass is 1 for tokens of textVocabulary that begin a word, 2 for those that continue one, and 0 for the others.
func wordClass(id uint32) int {
	first, size := utf8.DecodeRune(textVocabulary.Text.Bytes(id))
	second, _ := utf8.DecodeRune(textVocabulary.Text.Bytes(id)[size:])
	letter := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	switch {
	case slices.Contains(textVocabulary.Special, id):
		return 0
	case first == ' ' && letter(second):
		return 1
	case letter(first):
		return 2
	}
	return 0
}

// A token that is drawn has the word boundary of the one that was there: draws have the distribution of the choices that do
// (chi-square, 0.9999 quantiles).
func TestWholeWordsFollowTheWeights(t *testing.T) {
	ids := []int32{10, 12, 11, 22, 14, 96, 34, 35} // 96 is no token
	v := Vocabulary{ModelSize: 100, TokenizerSize: 96}
	spellings := make([][]byte, 96)
	for id, text := range map[int]string{10: " the", 11: "the", 12: " a", 14: ",", 22: " one", 34: "\n\nIt", 35: " ("} {
		spellings[id] = []byte(text)
	}
	v.Text = vocab.New(spellings, nil)
	probability := []float64{0.4, 0.2, 0.15, 0.1, 0.05, 0.04, 0.03, 0.02}
	var logp []float32
	for _, p := range probability {
		logp = append(logp, toHalf(math.Log(p)))
	}
	for _, c := range []struct {
		change   func(*Policy)
		drawn    []uint32
		quantile float64
	}{
		{func(*Policy) {}, []uint32{10, 12, 22, 34}, 21.1},
		{func(p *Policy) { p.ExcludeOriginal, p.Temperature = true, 2 }, []uint32{12, 22, 34}, 18.4},
		{func(p *Policy) { p.ExcludeOriginal, p.TopP = true, 0.7 }, []uint32{12}, 0}, // the others are beyond the nucleus
	} {
		p := testPolicy(c.change)
		p.Bands, p.WholeWords = UpFrom(0.3), true
		e, err := New(p, v)
		require.NoError(t, err)
		const epochs = 1_000_000
		d := onePosition(ids, logp)
		d.Scores.LogP[1] = float32(math.Log(probability[0]))
		drawn, _ := drawsOf(t, e, d, epochs)
		require.Len(t, drawn, len(c.drawn), "%v", drawn)
		sum := 0.0
		weight := map[uint32]float64{}
		for j, id := range ids {
			if slices.Contains(c.drawn, uint32(id)) {
				weight[uint32(id)] = math.Exp(float64(logp[j]) / p.Temperature)
				sum += weight[uint32(id)]
			}
		}
		square := 0.0
		for id, w := range weight {
			want := epochs * w / sum
			square += (float64(drawn[id]) - want) * (float64(drawn[id]) - want) / want
		}
		require.LessOrEqual(t, square, c.quantile)
	}
}

// Ids are protected for what they look like: never candidates and never drawn.
func TestBarredByText(t *testing.T) {
	tokens := []string{"a", "7", " x2y", "٣", "Ⅷ", ",", " (", "...\n", "$", "\n", "a.", "<|2|>", ""}
	barred := func(change func(*Policy)) (list []string) {
		e, err := New(testPolicy(func(p *Policy) {
			p.ProtectSpecial = false
			change(p)
		}), wordsVocabulary(tokens))
		require.NoError(t, err)
		for id, token := range tokens {
			if e.barred[id] {
				list = append(list, token)
			}
		}
		require.Equal(t, []bool{true, true}, e.barred[len(tokens):], "ids beyond the tokenizer's")
		return list
	}
	require.Equal(t, []string{"7", " x2y", "٣"}, barred(func(p *Policy) { p.ProtectDigits = true }))
	require.Equal(t, []string{",", " (", "...\n", "$"}, barred(func(p *Policy) { p.ProtectPunctuation = true }))
	require.Equal(t, []string{"7", " x2y", "٣", ",", " (", "...\n", "$"}, barred(func(p *Policy) { p.ProtectDigits, p.ProtectPunctuation = true, true }))
	require.Equal(t, []string{"<|2|>"}, barred(func(p *Policy) { p.ProtectSpecial, p.WholeWords = true, true }))
}

func TestWarmProtectionAllocatesNothing(t *testing.T) {
	e, err := New(textPolicy(15), bytesVocabulary)
	require.NoError(t, err)
	d := &Document{}
	for _, b := range []byte(strings.Repeat("the New York\n```\ncode\n```\n\x00", 20)) {
		d.IDs = append(d.IDs, uint32(b))
	}
	var plan Plan
	e.protect(d, &plan)
	require.Zero(t, testing.AllocsPerRun(20, func() { e.protect(d, &plan) }))
}
