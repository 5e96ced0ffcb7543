package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/require"
)

// console is the serial console of an emulated machine with SeaBIOS and the iPXE of its network card.
type console struct {
	t    *testing.T
	keys io.Writer

	mu     sync.Mutex
	shown  []byte
	looked int           // what the test has seen
	more   chan struct{} // closed when there is more
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shown = append(c.shown, b...)
	close(c.more)
	c.more = make(chan struct{})
	return len(b), nil
}

var ansi = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][0-9A-Za-z]|[\x00-\x09\x0b-\x1f]`)

func (c *console) text() string { return string(ansi.ReplaceAll(c.shown, nil)) }

// wait returns when the console shows a text that was not there before.
func (c *console) wait(text string) {
	c.t.Helper()
	limit := time.After(4 * time.Minute)
	for {
		c.mu.Lock()
		now, more := c.text(), c.more
		c.mu.Unlock()
		if at := strings.Index(now[min(c.looked, len(now)):], text); at >= 0 {
			c.looked += at + len(text)
			return
		}
		select {
		case <-more:
		case <-limit:
			c.t.Fatalf("the console does not show %q:\n%s", text, now[max(0, len(now)-4000):])
		}
	}
}

func (c *console) press(keys string) {
	c.t.Helper()
	for _, key := range []byte(keys) { // SeaBIOS reads one key at a time
		if _, err := c.keys.Write([]byte{key}); err != nil {
			c.t.Fatal(err)
		}
		select {
		case <-c.t.Context().Done():
		case <-time.After(150 * time.Millisecond): // a person's pace: its input has no acknowledgement
		}
	}
}

// powerOn starts a machine that boots from the network, whose DHCP server names the rig's script.
func (r *menuRig) powerOn() *console {
	t := r.t
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "pc,graphics=off", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-boot", "n", "-uuid", "a0a0a0a0-1111-4111-8111-0123456789ab",
		"-netdev", fmt.Sprintf("user,id=n,bootfile=http://10.0.2.2:%d/boot.ipxe", r.port), "-device", "virtio-net-pci,netdev=n,mac="+menuMAC)
	keys, err := cmd.StdinPipe()
	check(t, err)
	c := &console{t: t, keys: keys, more: make(chan struct{})}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = c, &stderr
	check(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if stderr.Len() > 0 && t.Failed() {
			t.Logf("QEMU: %s", stderr.Bytes())
		}
	})
	return c
}

// TestAPersonAtTheConsole has a real iPXE show the menu, and presses keys.
func TestAPersonAtTheConsole(t *testing.T) {
	if os.Getenv("COLDRACK_E2E_MENU") == "" {
		t.Skip("emulates a machine several times; make e2e-menu runs it")
	}
	require.Need(t, "qemu")
	menu := v1alpha1.BootMenu{
		Mode: v1alpha1.BootMenuPIN, PINSecret: "menu", Timeout: &metav1.Duration{Duration: 3 * time.Second},
		Entries: []v1alpha1.BootMenuEntry{{Name: "worker", Role: v1alpha1.RoleProductionWorker}},
	}
	start := func(t *testing.T) (*menuRig, *console) {
		r := newMenuRig(t, menu, "271828")
		return r, r.powerOn()
	}
	chosen := func(t *testing.T, r *menuRig) int {
		choices, _ := r.menus.Choices()
		return len(choices)
	}

	t.Run("nobody", func(t *testing.T) {
		r, c := start(t)
		c.wait("Press m within 3 s")
		c.wait("Discover: the machine is not known yet")
		if chosen(t, r) != 0 {
			t.Error("something was chosen")
		}
	})
	t.Run("a stray key does not hold the machine", func(t *testing.T) {
		_, c := start(t)
		c.wait("Press m within 3 s")
		c.press("\x1b[A")
		c.wait("Discover: the machine is not known yet")
	})
	t.Run("nor does a key that is stuck in the menu", func(t *testing.T) {
		r, c := start(t)
		c.wait("Press m within 3 s")
		c.press("m")
		c.wait("Key y: [1]")
		for range 8 { // four entries, twice
			c.press(" ")
		}
		c.wait("nothing was chosen, going on")
		c.wait("Discover: the machine is not known yet")
		if chosen(t, r) != 0 {
			t.Error("something was chosen")
		}
	})
	t.Run("nor does a person who opens the menu and leaves", func(t *testing.T) {
		_, c := start(t)
		c.wait("Press m within 3 s")
		c.press("m")
		c.wait("Key y: [1]")
		c.wait("nothing was chosen, going on")
		c.wait("Discover: the machine is not known yet")
	})
	t.Run("the local disk", func(t *testing.T) {
		_, c := start(t)
		c.wait("Press m within 3 s")
		c.press("m")
		for i := 1; i < 4; i++ {
			c.wait(fmt.Sprintf("Key y: [%d]", i))
			c.press(" ")
		}
		c.wait("Key y: [4]")
		c.press("y")
		c.wait("LocalDisk: the local disk was chosen at the console")
	})
	t.Run("an entry with the PIN", func(t *testing.T) {
		r, c := start(t)
		c.wait("Press m within 3 s")
		c.press("m")
		c.wait("Key y: [1]")
		c.press(" ")
		c.wait("Key y: [2] Install: Production: worker")
		c.press("y")
		c.wait("Username")
		c.press("kim\r271828\r")
		c.wait("worker was chosen at the console by kim")
		choices, _ := r.menus.Choices()
		for _, choice := range choices {
			if choice.Entry != "worker" || !choice.PIN || choice.By != "kim" {
				t.Errorf("choice %+v", choice)
			}
		}
		if len(choices) != 1 {
			t.Errorf("%d choices", len(choices))
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if strings.Contains(c.text(), "271828") {
			t.Errorf("the console shows the PIN:\n%s", c.text())
		}
	})
	t.Run("an entry with a wrong PIN", func(t *testing.T) {
		r, c := start(t)
		c.wait("Press m within 3 s")
		c.press("m")
		c.wait("Key y: [1]")
		c.press(" ")
		c.wait("Key y: [2]")
		c.press("y")
		c.wait("Username")
		c.press("kim\r314159\r")
		c.wait("the PIN is wrong")
		c.wait("Press m within 3 s") // and the machine goes on
		c.wait("Discover: the machine is not known yet")
		if chosen(t, r) != 0 {
			t.Error("something was chosen")
		}
	})
}
