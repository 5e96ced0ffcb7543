package discovery

import (
	"net"
	"strings"
	"testing"
	"time"
)

func TestParseArguments(t *testing.T) {
	pin := "sha256:" + strings.Repeat("ab", 32)
	good := "BOOT_IMAGE=x quiet coldrack.server=https://10.0.0.1:9443 coldrack.boot=http://10.0.0.1:8080 coldrack.ca=" + pin + " coldrack.nonce=n0nce"
	for name, tt := range map[string]struct {
		line  string
		mac   string
		shell bool
		text  string // of the error
	}{
		"what the boot script writes":      {line: good + " coldrack.mac=52:54:00:AA:bb:cc console=ttyS0\n", mac: "52:54:00:aa:bb:cc"},
		"a boot loader's BOOTIF":           {line: good + " BOOTIF=01-52-54-00-aa-bb-cc", mac: "52:54:00:aa:bb:cc"},
		"no interface":                     {line: good},
		"a shell, and quotes elsewhere":    {line: `dyndbg="file a.c +p" ` + good + " coldrack.debug=shell", shell: true},
		"nothing at all, but a shell":      {line: "coldrack.debug=shell", shell: true, text: "coldrack.nonce is missing"},
		"a machine API without encryption": {line: strings.Replace(good, "https:", "http:", 1), text: "coldrack.server"},
		"a pin that was cut off":           {line: strings.Replace(good, "abab ", "ab ", 1), text: "coldrack.ca"},
		"an interface that is none":        {line: good + " coldrack.mac=eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := ParseArguments(tt.line)
			if (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error is %v, want %q", err, tt.text)
			}
			if a.MAC != tt.mac || a.Shell != tt.shell {
				t.Errorf("got %+v", a)
			}
			if err == nil && (a.Server != "https://10.0.0.1:9443" || a.Boot != "http://10.0.0.1:8080" || a.Pin.String() != pin || a.Nonce != "n0nce") {
				t.Errorf("got %+v", a)
			}
		})
	}
}

func TestOffText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-69148 * time.Hour:  "2881 days behind",
		90 * time.Second:    "1m30s ahead",
		-3 * time.Second:    "3s behind",
		20000 * time.Minute: "13 days ahead",
	} {
		if got := offText(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

// The kernel command line comes from whoever answered the boot.
func FuzzParseArguments(f *testing.F) {
	f.Add("coldrack.server=https://10.0.0.1:7444 coldrack.boot=http://10.0.0.1:7080 coldrack.ca=sha256:" + strings.Repeat("0", 64) + " coldrack.nonce=x coldrack.mac=02:00:00:00:00:01")
	f.Add(`a="b c" coldrack.server=https:// BOOTIF=01-02-00-00-00-00-01 coldrack.debug=shell`)
	f.Add(`"`)
	f.Fuzz(func(t *testing.T, line string) {
		a, err := ParseArguments(line)
		if err == nil && (a.Nonce == "" || !strings.HasPrefix(strings.ToLower(a.Server), "https://")) {
			t.Errorf("%q is taken as %+v", line, a)
		}
		if mac, err := net.ParseMAC(a.MAC); a.MAC != "" && (err != nil || len(mac) != 6) {
			t.Errorf("%q has the MAC %q", line, a.MAC)
		}
	})
}
