package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"coldrack.dev/internal/cli/exit"
)

// The alternate screen keeps what was on the terminal before, and gives it back at the end.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	cursorHome  = "\x1b[H"
	eraseLine   = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

// Terminal returns the size of a stream when a person looks at it.
func Terminal(w any) (width, height int, ok bool) {
	file, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(file.Fd()))
	return width, height, err == nil && width > 0 && height > 0
}

// CanAsk is true when a person reads out and types into in.
func CanAsk(in io.Reader, out io.Writer) bool {
	stdin, isFile := in.(*os.File)
	_, _, tty := Terminal(out)
	return tty && isFile && term.IsTerminal(int(stdin.Fd()))
}

// ReadAnswer waits for a line that a person types; it is empty when ctx ends before.
func ReadAnswer(ctx context.Context, in io.Reader, out io.Writer) string {
	answer := make(chan string, 1)
	go func() { // ends with its line or with the process
		line, _ := bufio.NewReader(in).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(out)
		return ""
	case line := <-answer:
		return line
	}
}

// Confirm asks question at the terminal, and refuses unless the person types answer. Without a terminal it refuses with
// what a script has to add. nothing says what was not done.
func Confirm(ctx context.Context, in io.Reader, out io.Writer, question, answer, nothing string) error {
	if !CanAsk(in, out) {
		return exit.Refusedf("%s: without a terminal, confirm it with --yes", nothing)
	}
	fmt.Fprint(out, question)
	if ReadAnswer(ctx, in, out) == answer {
		return nil
	}
	return exit.Refusedf("not confirmed, %s", nothing)
}

// Screen shows pictures on a whole terminal. Each asks for the size anew, so a resized window is right with the next.
type Screen struct {
	out  io.Writer
	last string
}

// NewScreen takes the terminal until Close.
func NewScreen(out io.Writer) *Screen {
	fmt.Fprint(out, enterScreen)
	return &Screen{out: out}
}

// Draw shows the picture that render makes for the terminal's size.
func (s *Screen) Draw(render func(width, height int) string) {
	width, height, ok := Terminal(s.out)
	if !ok {
		return
	}
	s.last = render(width, height)
	fmt.Fprint(s.out, cursorHome, strings.ReplaceAll(s.last, "\n", eraseLine+"\r\n"), eraseLine, eraseBelow)
}

// Close gives the terminal back and leaves the last picture on it.
func (s *Screen) Close() { fmt.Fprintln(s.out, leaveScreen+s.last) }

// Meter shows progress in bytes: one line that changes on a terminal, a line every ten percent elsewhere.
type Meter struct {
	out   io.Writer
	verb  string
	tty   bool
	now   func() time.Time
	drawn time.Time
	tenth int64
	begun bool
}

// NewMeter returns a meter whose lines begin with verb.
func NewMeter(out io.Writer, verb string, now func() time.Time) *Meter {
	_, _, tty := Terminal(out)
	return &Meter{out: out, verb: verb, tty: tty, now: now, tenth: -1}
}

// At says that done of total bytes are dealt with, and that what is next.
func (m *Meter) At(done, total int64, what string) {
	if total <= 0 {
		return
	}
	fraction := float64(done) / float64(total)
	text := fmt.Sprintf("%s %s %3d%%  %s of %s  %s", m.verb, Bar(fraction, 22), int(fraction*100), Bytes(done), Bytes(total), what)
	if m.tty {
		if m.now().Sub(m.drawn) < 100*time.Millisecond && done < total {
			return
		}
		m.drawn, m.begun = m.now(), true
		width, _, _ := Terminal(m.out)
		if len(text) >= width && width > 1 {
			text = text[:width-1]
		}
		fmt.Fprintf(m.out, "\r%s%s", text, eraseLine)
		return
	}
	if tenth := done * 10 / total; tenth > m.tenth {
		m.tenth = tenth
		fmt.Fprintln(m.out, text)
	}
}

// End ends the line that changes.
func (m *Meter) End() {
	if m.tty && m.begun {
		fmt.Fprintln(m.out)
	}
}

// AskPassword reads a line that the terminal does not show; it is empty when ctx ends before.
func AskPassword(ctx context.Context, in io.Reader, out io.Writer, prompt string) (string, error) {
	if !CanAsk(in, out) {
		return "", exit.Usagef("there is no terminal to ask for it: give it by standard input (see --help)")
	}
	terminal := int(in.(*os.File).Fd())
	before, err := term.GetState(terminal)
	if err != nil {
		return "", err
	}
	fmt.Fprint(out, prompt)
	defer fmt.Fprintln(out)
	type result struct {
		line []byte
		err  error
	}
	answer := make(chan result, 1)
	go func() { // ends with its line or with the process
		line, err := term.ReadPassword(terminal)
		answer <- result{line, err}
	}()
	select {
	case <-ctx.Done():
		_ = term.Restore(terminal, before) // a terminal that shows nothing must not be left behind
		return "", context.Cause(ctx)
	case r := <-answer:
		return string(r.line), r.err
	}
}
