package editor

import "bytes"

// fence is a run of backticks or tildes at the beginning of a line, which opens or closes a code block (CommonMark 0.31,
// section 4.5).
type fence struct {
	char   byte
	length int // 0: there is none
}

const (
	leastFence = 3
	mostIndent = 3 // spaces in front; more are an indented code block
)

// fenceOf finds the fence that a line begins with, and what follows it.
func fenceOf(line []byte) (f fence, rest []byte) {
	rest = bytes.TrimLeft(line, " ")
	if len(line)-len(rest) > mostIndent || len(rest) == 0 || rest[0] != '`' && rest[0] != '~' {
		return fence{}, nil
	}
	f.char = rest[0]
	for f.length < len(rest) && rest[f.length] == f.char {
		f.length++
	}
	if f.length < leastFence {
		return fence{}, nil
	}
	return f, rest[f.length:]
}

// opens says whether a fence with that behind it opens a block. Backticks in the info string make it code in a line.
func (f fence) opens(rest []byte) bool {
	return f.length > 0 && (f.char != '`' || bytes.IndexByte(rest, '`') < 0)
}

// closes says whether a fence with that behind it closes the block that another one opened.
func (f fence) closes(open fence, rest []byte) bool {
	return f.char == open.char && f.length >= open.length && len(bytes.Trim(rest, " \t")) == 0
}

// markCode marks the tokens of fenced code blocks, their fences included, and the line endings in front of and behind the
// fences, without which they would be none. A block that is not closed reaches to the end. Quotes and lists are not looked
// into.
func (s *stretch) markCode(marks []bool) {
	var open fence
	from := 0
	for at := 0; at < len(s.text); {
		line, next := s.line(at)
		f, rest := fenceOf(line)
		switch {
		case open.length == 0 && f.opens(rest):
			open, from = f, max(at-1, 0)
		case open.length > 0 && f.closes(open, rest):
			s.mark(marks, from, next)
			open = fence{}
		}
		at = next
	}
	if open.length > 0 {
		s.mark(marks, from, len(s.text))
	}
}

// line is the line that begins at an index, without its ending, and where the next one begins. A line ends with a newline, a
// carriage return or both.
func (s *stretch) line(at int) (line []byte, next int) {
	rest := s.text[at:]
	n := bytes.IndexAny(rest, "\r\n")
	if n < 0 {
		return rest, len(s.text)
	}
	next = at + n + 1
	if rest[n] == '\r' && next < len(s.text) && s.text[next] == '\n' {
		next++
	}
	return rest[:n], next
}
