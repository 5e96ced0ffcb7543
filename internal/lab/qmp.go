package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// qmpTimeout bounds a command to an emulator that does not answer, or that another program is talking
// to: QEMU serves one at a time.
const qmpTimeout = 15 * time.Second

// qmpMessage is anything that QEMU sends: a greeting, an event, a result or an error.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

type qmpCommand struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments,omitempty"`
}

// dialIn connects to a Unix socket by its name within a folder, whatever the length of the folder's name:
// a socket address has room for 107 bytes.
func dialIn(ctx context.Context, dir, name string) (net.Conn, error) {
	folder, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), name))
}

// qmp carries out commands, one after the other, on the machine whose folder is given.
func qmp(ctx context.Context, dir string, commands ...qmpCommand) error {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	conn, err := dialIn(ctx, dir, qmpSocket)
	if err != nil {
		return fmt.Errorf("connect to the emulator's control socket: %w", err)
	}
	defer conn.Close()
	// Close interrupts a read or write that waits.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err = qmpTalk(conn, commands)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("the emulator does not answer: %w", ctx.Err())
	}
	return err
}

// qmpTalk negotiates and carries out commands. Events that come in between are not for us.
func qmpTalk(conn io.ReadWriter, commands []qmpCommand) error {
	decoder, encoder := json.NewDecoder(conn), json.NewEncoder(conn)
	next := func() (qmpMessage, error) {
		for {
			var m qmpMessage
			if err := decoder.Decode(&m); err != nil {
				return m, fmt.Errorf("read from the emulator: %w", err)
			}
			if m.Event == "" {
				return m, nil
			}
		}
	}
	hello, err := next()
	if err != nil {
		return err
	}
	if hello.Greeting == nil {
		return errors.New("the emulator's control socket gives no QMP greeting")
	}
	for _, command := range append([]qmpCommand{{Execute: "qmp_capabilities"}}, commands...) {
		if err := encoder.Encode(command); err != nil {
			return fmt.Errorf("send %s to the emulator: %w", command.Execute, err)
		}
		answer, err := next()
		if err != nil {
			return err
		}
		if answer.Error != nil {
			return fmt.Errorf("the emulator refuses %s: %s", command.Execute, answer.Error.Desc)
		}
	}
	return nil
}
