package lab

import (
	"flag"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"coldrack.dev/test/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestCommandLines(t *testing.T) {
	const golden = "testdata/qemu.txtar"
	options := func(change func(*Options)) Options {
		o := Options{Dir: "/x", Firmware: BIOS}
		if change != nil {
			change(&o)
		}
		return o.withDefaults()
	}
	other := specOf(options(nil), 7)
	cases := []struct {
		name        string
		options     Options
		accelerator Accelerator
		start       startOptions
	}{
		{"bios-kvm", options(nil), KVM, startOptions{}},
		{"bios-tcg", options(nil), TCG, startOptions{}},
		{"uefi-tcg", options(func(o *Options) { o.Firmware = UEFI }), TCG, startOptions{}},
		{"two-nics-two-scsi-disks", options(func(o *Options) { o.NICs = 2; o.Disks = []Size{8 * GiB, GiB} }), TCG, startOptions{}},
		{"nvme-disk-only", options(func(o *Options) { o.Bus = NVMe }), TCG, startOptions{diskOnly: true}},
		{"sata-another-time", options(func(o *Options) { o.Bus = SATA }), TCG, startOptions{clock: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)}},
		{"virtio-another-card", options(func(o *Options) { o.Bus = Virtio }), TCG, startOptions{newMAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}},
		{"impersonates-another", options(nil), TCG, startOptions{like: &other}},
		{"own-time", options(func(o *Options) { o.CPUs = 1; o.OwnTime = true }), TCG, startOptions{}},
		{"own-time-kvm", options(func(o *Options) { o.CPUs = 1; o.OwnTime = true }), KVM, startOptions{}},
		{"diskless", options(func(o *Options) { o.Disks = []Size{} }), TCG, startOptions{}},
	}
	archive := &txtar.Archive{Comment: []byte("QEMU's command line, one argument a line. Written by `go test ./internal/lab -update`.\n")}
	for _, c := range cases {
		in := invocation{spec: specOf(c.options, 1), dir: "/a,b/lab/lab-1", accelerator: c.accelerator, uefiCode: "/fw/CODE.fd", start: c.start}
		archive.Files = append(archive.Files, txtar.File{Name: c.name, Data: []byte(strings.Join(in.args(), "\n") + "\n")})
	}
	got := txtar.Format(archive)
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("-want +got; accept with -update:\n%s", diff)
	}
}

func TestPrintable(t *testing.T) {
	for raw, want := range map[string]string{
		"\x1b[0;1miPXE\x1b[0m 1.0\r\n":             "iPXE 1.0\n",
		"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: failed": "BdsDxe: failed",
		"\x1b]0;title\x07tab\there":                "tab\there",
		"\x1bcreset \x1b(Bset":                     "reset set",
		"\x1b[?7l\x00done\x08":                     "done",
		"Grüße":                                    "Grüße",
	} {
		if got := Printable([]byte(raw)); got != want {
			t.Errorf("%q is printed as %q, want %q", raw, got, want)
		}
	}
}

func TestQMP(t *testing.T) {
	const greeting = `{"QMP": {"version": {}}}` + "\n"
	const event = `{"event": "NIC_RX_FILTER_CHANGED", "data": {}}` + "\n"
	const ok = `{"return": {}}` + "\n"
	for name, test := range map[string]struct{ answers, want string }{
		"events between answers are passed over": {greeting + event + ok + event + event + ok, ""},
		"a refusal says why":                     {greeting + ok + `{"error": {"class": "GenericError", "desc": "no such link"}}`, "refuses set_link: no such link"},
		"somebody else's socket":                 {`{"hello": 1}`, "no QMP greeting"},
		"an emulator that dies":                  {greeting + ok, "EOF"},
		"an emulator that talks nonsense":        {greeting + "SSH-2.0", "read from the emulator"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := &conversation{Reader: strings.NewReader(test.answers)}
			err := qmpTalk(conn, []qmpCommand{{Execute: "set_link", Arguments: map[string]any{"name": "net0", "up": false}}})
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
			if test.want != "" {
				return
			}
			const said = `{"execute":"qmp_capabilities"}` + "\n" + `{"execute":"set_link","arguments":{"name":"net0","up":false}}` + "\n"
			if got := conn.sent.String(); got != said {
				t.Errorf("sent %s", got)
			}
		})
	}
}

// conversation reads what was prepared and keeps what is written.
type conversation struct {
	*strings.Reader
	sent strings.Builder
}

func (c *conversation) Write(p []byte) (int, error) { return c.sent.Write(p) }

func TestListensOn(t *testing.T) {
	const table = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  155: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12345 2 0000000000000000 0
`
	if !listensOn(table, 67) {
		t.Error("does not see the listener on port 67")
	}
	if listensOn(table, 69) {
		t.Error("sees a listener on port 69")
	}
}

func TestTheTrialOfAnAccelerator(t *testing.T) {
	require.Need(t, "qemu")
	for name, test := range map[string]struct {
		accelerator Accelerator
		limit       time.Duration
		want        string
	}{
		"emulation always works":          {TCG, time.Minute, ""},
		"one that QEMU cannot start":      {"-cpu-nonsense", time.Minute, "exit status"},
		"one that is too slow to be used": {TCG, time.Nanosecond, "did not get through in 0s"},
	} {
		t.Run(name, func(t *testing.T) {
			args := acceleratorArgs(test.accelerator, 64*MiB)
			if test.accelerator != TCG {
				args = []string{"-accel", string(test.accelerator)}
			}
			reason, err := tryAccelerator(t.Context(), args, test.limit)
			if err != nil {
				t.Fatal(err)
			}
			if (test.want == "") != (reason == "") || !strings.Contains(reason, test.want) {
				t.Errorf("reason is %q, want %q", reason, test.want)
			}
		})
	}
}

func TestConsoleTail(t *testing.T) {
	m := &Machine{dir: t.TempDir(), spec: Spec{Name: "lab-1"}}
	if mark, err := m.ConsoleTail(3); mark != 0 || err != nil {
		t.Errorf("of a machine that was never on: %d, %v", mark, err)
	}
	const text = "one\r\ntwo\r\n\x1b[0mthree\r\nlogin: "
	if err := os.WriteFile(m.ConsoleLog(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for lines, want := range map[int]string{-1: text, 0: "", 1: "login: ", 2: "\x1b[0mthree\r\nlogin: ", 4: text, 9: text} {
		if mark, err := m.ConsoleTail(lines); err != nil || text[mark:] != want {
			t.Errorf("%d lines: %q (%v), want %q", lines, text[mark:], err, want)
		}
	}
	if got := m.LastLine(); got != "login:" {
		t.Errorf("last line is %q", got)
	}
}
