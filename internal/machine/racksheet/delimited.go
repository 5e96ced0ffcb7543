package racksheet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// readDelimited reads CSV: whatever the text is encoded in, and whatever separates its fields. Of the ways in which it can be read,
// that one counts in which most columns have a header that is known.
func readDelimited(data []byte) ([]Grid, error) {
	var best []Line
	var bestErr error
	most := -1
	for _, text := range readings(data) {
		separators := []rune{';', ',', '\t', '|'}
		if first, rest, _ := strings.Cut(text, "\n"); strings.HasPrefix(strings.ToLower(first), "sep=") && len(strings.TrimRight(first, "\r")) == 5 {
			separators = []rune{rune(first[4])} // how Excel is told
			text = "\n" + rest
		}
		for _, separator := range separators {
			lines, err := split(text, separator)
			known := 0
			if at := findHeader(lines); at >= 0 {
				known = len(knownColumns(lines[at]))
			}
			if known > most {
				most, best, bestErr = known, lines, err
			}
		}
	}
	if bestErr != nil {
		return nil, bestErr
	}
	return []Grid{{Lines: best}}, nil
}

// readings are what the bytes can mean as text.
func readings(data []byte) []string {
	switch {
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		data = data[3:]
	case bytes.HasPrefix(data, []byte("\xff\xfe")):
		return []string{fromUTF16(data[2:], binary.LittleEndian)}
	case bytes.HasPrefix(data, []byte("\xfe\xff")):
		return []string{fromUTF16(data[2:], binary.BigEndian)}
	}
	// Without a mark, every other byte of a table in UTF-16 is zero: digits, letters and separators are ASCII.
	switch zeros := bytes.Count(data[:min(len(data), 512)], []byte{0}); {
	case zeros*4 < min(len(data), 512) || len(data) < 2:
	case data[0] == 0:
		return []string{fromUTF16(data, binary.BigEndian)}
	default:
		return []string{fromUTF16(data, binary.LittleEndian)}
	}
	if utf8.Valid(data) {
		return []string{string(data)}
	}
	var texts []string
	for _, e := range []encoding.Encoding{charmap.Windows1252, simplifiedchinese.GB18030} {
		if text, err := e.NewDecoder().Bytes(data); err == nil {
			texts = append(texts, string(text))
		}
	}
	return texts
}

func fromUTF16(data []byte, order binary.ByteOrder) string {
	units := make([]uint16, 0, len(data)/2)
	for ; len(data) >= 2; data = data[2:] {
		units = append(units, order.Uint16(data))
	}
	return string(utf16.Decode(units))
}

// split takes CSV apart (RFC 4180), also where people wrote a quote into a field that is not quoted, such as 19" rack. With an error come
// the lines before it.
func split(text string, separator rune) ([]Line, error) {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	text = strings.ReplaceAll(text, "\r", "\n")
	var lines []Line
	var cells []string
	number, start := 1, 1
	for i := 0; ; {
		field, next, err := splitField(text[i:], separator)
		if err != nil {
			return lines, Problems{{Line: number, Message: err.Error()}}
		}
		number += strings.Count(text[i:i+next], "\n")
		i += next
		if len(cells) < maxColumns {
			cells = append(cells, field)
		}
		if i < len(text) && text[i] != '\n' {
			i += utf8.RuneLen(separator)
			continue
		}
		lines = append(lines, Line{Number: start, Cells: cells})
		if i >= len(text) {
			return lines, nil
		}
		if len(lines) == maxLines {
			return nil, fmt.Errorf("the sheet has more than %d lines", maxLines)
		}
		i++
		number++
		cells, start = nil, number
	}
}

// splitField reads the field that text begins with, and says where it ends: at a separator, a line end, or the end.
func splitField(text string, separator rune) (field string, end int, err error) {
	if !strings.HasPrefix(text, `"`) {
		end = strings.IndexFunc(text, func(r rune) bool { return r == separator || r == '\n' })
		if end < 0 {
			end = len(text)
		}
		return text[:end], end, nil
	}
	var b strings.Builder
	for i := 1; i < len(text); {
		quote := strings.IndexByte(text[i:], '"')
		if quote < 0 || b.Len() > maxCell {
			break
		}
		b.WriteString(text[i : i+quote])
		i += quote + 1
		if strings.HasPrefix(text[i:], `"`) {
			b.WriteByte('"')
			i++
			continue
		}
		rest := strings.TrimLeft(text[i:], " ")
		if rest == "" || rest[0] == '\n' || strings.HasPrefix(rest, string(separator)) {
			return b.String(), len(text) - len(rest), nil
		}
		b.WriteByte('"') // a quote within, which should have been doubled
	}
	return "", 0, fmt.Errorf("a quoted field begins here that does not end: %s; close the quote, or double one that is meant", quoteOf(text))
}

// quoteOf is the beginning of a text, for a message.
func quoteOf(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	return fmt.Sprintf("%.40q", text)
}
