package menu

import (
	"fmt"
	"strings"
	"time"

	"coldrack.dev/internal/netboot/boot"
)

// Target is how a machine asks again. Neither has a secret.
type Target struct {
	Machine string // name for the console; empty when unknown
	// Host is this server's host and port for boot HTTP.
	Host string
	// Ask is the path and query by which iPXE asks what to boot, with what it knows of the machine; the choice is added to it.
	Ask string
}

const (
	// perItem is how long each entry is shown before the next.
	perItem = 8 * time.Second
	// rounds is how often the whole menu is shown.
	rounds = 2
	// keyOpen opens the menu, keyTake takes what is shown. It is not Enter: people press that on any silent console, and versions of iPXE
	// differ in the code of it.
	keyOpen, keyTake = "m", "y"
)

// Script renders a menu for iPXE.
//
// Its time-out is strict. iPXE's own "choose" stops counting at the first key, so that a stray one holds a machine until a person comes. Here
// each wait is a "prompt", which ends at any key and by its own time-out, and there is a fixed number of them: keys can only make it shorter.
// The exception is the PIN, since iPXE asks for a text without a time-out; it is asked for after two certain keys.
//
// The PIN goes as the password of HTTP's basic authentication, because iPXE hides that in the URLs that it shows; consoles are recorded.
func Script(items []Item, byDefault string, p *Policy, t Target) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	ask := "http://" + t.Host + t.Ask + "&choice="
	wait := p.Menu.Wait()
	name := t.Machine
	if name == "" {
		name = "new machine"
	}
	shown := byDefault
	for _, item := range items {
		if item.Name == byDefault {
			shown = item.Title
		}
	}
	line("#!ipxe")
	line("echo Coldrack: %s: without a key: %s", boot.Printable(name), boot.Printable(shown))
	line("prompt --key %s --timeout %d Press %s within %d s for the boot menu... && goto menu ||", keyOpen, wait.Milliseconds(), keyOpen, int(wait.Seconds()))
	line(":default")
	line("chain --replace --autofree %s%s || goto failed", ask, byDefault)
	line(":menu")
	line("echo")
	for i, item := range items {
		pin := ""
		if item.PIN {
			pin = " (PIN)"
		}
		line("echo [%d] %s%s", i+1, boot.Printable(item.Title), pin)
	}
	line("echo")
	line("echo Key %s takes the entry that is shown. Any other key shows the next one, and so does a wait of %d s.", keyTake, int(perItem.Seconds()))
	line("set round:int32 0")
	line(":round")
	for i, item := range items {
		line("prompt --key %s --timeout %d Key %s: [%d] %s && goto take%d ||", keyTake, perItem.Milliseconds(), keyTake, i+1, boot.Printable(item.Title), i+1)
	}
	line("inc round")
	line("iseq ${round} %d || goto round", rounds)
	line("echo Coldrack: nothing was chosen, going on")
	line("goto default")
	for i, item := range items {
		line(":take%d", i+1)
		line("echo Coldrack: %s", boot.Printable(item.Title))
		if !item.PIN {
			line("chain --replace --autofree %s%s || goto failed", ask, item.Name)
			continue
		}
		line("clear username")
		line("clear password")
		line("echo Your name is for the record; the password is the PIN of the boot menu. Esc goes on without.")
		line("login || goto default")
		line("isset ${password} || goto default")
		line("isset ${username} || set username console")
		line("chain --replace --autofree http://${username:uristring}:${password:uristring}@%s%s&choice=%s || goto failed", t.Host, t.Ask, item.Name)
	}
	line(":failed")
	line("clear password")
	line("echo Coldrack: the boot server did not answer that, asking again in 10 seconds")
	line("sleep 10")
	line("chain --replace --autofree http://%s/boot.ipxe || goto failed", t.Host)
	return b.String()
}

// Refusal tells the person at the console why a choice is not carried out, and begins anew.
func Refusal(why string, t Target) string {
	return fmt.Sprintf(`#!ipxe
clear password
echo Coldrack: %s
sleep 8
:again
chain --replace --autofree http://%s/boot.ipxe ||
echo Coldrack: the boot server does not answer, asking again in 10 seconds
sleep 10
goto again
`, boot.Printable(why), t.Host)
}
