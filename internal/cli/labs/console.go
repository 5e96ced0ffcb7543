package labs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"

	"golang.org/x/term"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/lab"
)

// Console says how a machine's console is shown.
type Console struct {
	Tail   int  // begin with this many last lines; all if negative
	Follow bool // go on with what comes, until the context ends
	Raw    bool // leave terminal control sequences in
}

// Show writes what the machine has written on its console.
func (c Console) Show(ctx context.Context, m *lab.Machine, out io.Writer) error {
	mark, err := m.ConsoleTail(c.Tail)
	if err != nil {
		return err
	}
	show := func(chunk []byte) error {
		if !c.Raw {
			chunk = []byte(lab.Printable(chunk))
		}
		_, err := out.Write(chunk)
		return err
	}
	if c.Follow {
		err := m.FollowConsole(ctx, mark, show)
		if errors.Is(err, context.Canceled) {
			return nil // Ctrl-C is how one stops following
		}
		return err
	}
	file, err := os.Open(m.ConsoleLog())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was never on
	}
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, mark, m.ConsoleMark()-mark))
	if err != nil {
		return err
	}
	return show(text)
}

// escapeKey is Ctrl-], as in telnet.
const escapeKey = 0x1d

// AttachConsole connects the terminal with the console until the machine goes off, the escape key is
// pressed or the input ends. What it tells the person goes to messages.
func AttachConsole(ctx context.Context, m *lab.Machine, in io.Reader, out, messages io.Writer) error {
	conn, err := m.DialConsole(ctx)
	if errors.Is(err, lab.ErrOff) {
		return exit.Refusedf("%w", err)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if file, ok := in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		fmt.Fprintf(messages, "console of %s; Ctrl-] leaves\n", m.Name())
		before, err := term.MakeRaw(int(file.Fd()))
		if err != nil {
			return err
		}
		defer func() {
			_ = term.Restore(int(file.Fd()), before)
			fmt.Fprintln(messages)
		}()
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// A read of a terminal cannot be interrupted. This goroutine ends with the process, which has nothing
	// else to do.
	go func() {
		defer conn.Close()
		buffer := make([]byte, 256)
		for {
			n, err := in.Read(buffer)
			typed := buffer[:n]
			i := bytes.IndexByte(typed, escapeKey)
			if i >= 0 {
				typed = typed[:i]
			}
			if _, writeErr := conn.Write(typed); writeErr != nil || err != nil || i >= 0 {
				return
			}
		}
	}()
	if _, err := io.Copy(out, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("console of %s: %w", m.Name(), err)
	}
	return nil
}
