// Package termtext makes text of unknown origin (from the network, firmware, a disk or another program) safe for
// terminals and logs: it cannot move the cursor, change colors, reorder what is read, or fill the screen.
package termtext

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Ellipsis ends text that Mark or Cut has cut.
const Ellipsis = "…"

// Line is text as one line of at most limit bytes; a limit of 0 is none. White space at both ends goes, line ends
// and tabs within become spaces, and whatever a terminal would act on instead of showing it goes (see Unsafe).
func Line(text string, limit int) string {
	text = clean(text, -1)
	if limit > 0 && len(text) > limit {
		text = strings.TrimSpace(head(text, limit))
	}
	return text
}

// Mark is Line for text that is quoted in a message or a log: "?" stands for each unsafe rune, and an ellipsis for
// what was cut.
func Mark(text string, limit int) string {
	return Cut(clean(text, '?'), limit)
}

// Lines is text with its line ends and tabs, and without anything else that is unsafe.
func Lines(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !Unsafe(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(text, ""))
}

// ASCII is text for consoles that know nothing but printable ASCII, such as those of firmware.
func ASCII(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, ascii.Replace(text))
}

var ascii = strings.NewReplacer(Ellipsis, "...", "●", "*")

func clean(text string, instead rune) string {
	bad := ""
	if instead >= 0 {
		bad = string(instead)
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case Unsafe(r):
			return instead
		}
		return r
	}, strings.ToValidUTF8(text, bad)))
}

// Unsafe says that a rune does something other than show itself: control characters (C0, DEL, C1 and so every escape
// sequence), marks and overrides of writing direction, zero-width and other format characters, line and paragraph
// separators, private-use and unassigned code points, and the replacement character.
func Unsafe(r rune) bool {
	return r == utf8.RuneError || !unicode.IsPrint(r)
}

// Cut shortens text to at most limit bytes, at the boundary of a rune, and ends it with an ellipsis if it did. A limit
// of 0 is none.
func Cut(text string, limit int) string {
	if limit <= 0 || len(text) <= limit {
		return text
	}
	if limit < len(Ellipsis) {
		return ""
	}
	return strings.TrimSpace(head(text, limit-len(Ellipsis))) + Ellipsis
}

// head is at most the first n bytes of text, without a part of a rune.
func head(text string, n int) string {
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
