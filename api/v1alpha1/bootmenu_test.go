package v1alpha1

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestValidateBootMenu(t *testing.T) {
	worker := []BootMenuEntry{{Name: "worker", Role: RoleProductionWorker}}
	for name, test := range map[string]struct {
		menu *BootMenu
		want []string
	}{
		"none":                            {nil, nil},
		"off":                             {&BootMenu{Mode: BootMenuOff}, nil},
		"free, with a default":            {&BootMenu{Mode: BootMenuFree, Default: "worker", Entries: worker}, nil},
		"a PIN":                           {&BootMenu{Mode: BootMenuPIN, PINSecret: "menu", Default: "local", Entries: worker}, nil},
		"a PIN that is nowhere":           {&BootMenu{Mode: BootMenuPIN}, []string{"pinSecret", "set-pin"}},
		"a default that needs the PIN":    {&BootMenu{Mode: BootMenuPIN, PINSecret: "menu", Default: "worker", Entries: worker}, []string{"default", "Free only"}},
		"a default that does not exist":   {&BootMenu{Mode: BootMenuFree, Default: "router"}, []string{"default"}},
		"the shell as the default":        {&BootMenu{Mode: BootMenuFree, Default: "live"}, []string{"default"}},
		"no time at all":                  {&BootMenu{Mode: BootMenuFree, Timeout: &metav1.Duration{Duration: time.Millisecond}}, []string{"timeout", "1s to 5m"}},
		"an hour":                         {&BootMenu{Mode: BootMenuFree, Timeout: &metav1.Duration{Duration: time.Hour}}, []string{"timeout"}},
		"the name of a built-in entry":    {&BootMenu{Mode: BootMenuFree, Entries: []BootMenuEntry{{Name: "local", Profile: "p"}}}, []string{"entries[0].name", "built-in"}},
		"an entry that gives nothing":     {&BootMenu{Mode: BootMenuFree, Entries: []BootMenuEntry{{Name: "x"}}}, []string{"entries[0]", "needs a role"}},
		"labels that are none":            {&BootMenu{Mode: BootMenuFree, Entries: []BootMenuEntry{{Name: "x", Labels: map[string]string{"a b": "c"}}}}, []string{"entries[0].labels"}},
		"a title that firmware garbles":   {&BootMenu{Mode: BootMenuFree, Entries: []BootMenuEntry{{Name: "x", Profile: "p", Title: "größer"}}}, []string{"entries[0].title", "ASCII"}},
		"a title of two lines":            {&BootMenu{Mode: BootMenuFree, Entries: []BootMenuEntry{{Name: "x", Profile: "p", Title: "a\nb"}}}, []string{"entries[0].title"}},
		"what is wrong although it's off": {&BootMenu{Mode: BootMenuOff, Entries: []BootMenuEntry{{Name: "x"}}}, []string{"entries[0]"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Subnet{Spec: SubnetSpec{CIDR: "10.20.0.0/24", DHCP: DHCPOff, BootMenu: test.menu}}
			errs := ValidateSubnet(s, nil)
			if (len(errs) > 0) != (test.want != nil) {
				t.Fatalf("got %v", errs)
			}
			for _, part := range test.want {
				if !strings.Contains(errs.ToAggregate().Error(), part) {
					t.Errorf("%v does not say %q", errs, part)
				}
			}
		})
	}
}

func TestMenuPIN(t *testing.T) {
	for pin, ok := range map[string]bool{"271828": true, "abcDEF123": true, "12345": false, "": false, "1234 56": false, "12345ß": false, strings.Repeat("1", 33): false} {
		secret := &Secret{Type: SecretTypeMenuPIN, Data: map[string][]byte{MenuPINKey: []byte(pin)}}
		got, err := ReadMenuPIN(secret)
		if (err == nil) != ok || ok && got != pin {
			t.Errorf("%q: %v", pin, err)
		}
		if err != nil && pin != "" && strings.Contains(err.Error(), pin) {
			t.Errorf("the error tells the PIN: %v", err)
		}
	}
	if _, err := ReadMenuPIN(&Secret{Type: SecretTypeBMC, Data: map[string][]byte{MenuPINKey: []byte("271828")}}); err == nil {
		t.Error("the password of a BMC is taken for a PIN")
	}
}

func TestMenuChoice(t *testing.T) {
	m := &Machine{}
	if _, ok := m.Menu(); ok {
		t.Error("a machine without a choice has one")
	}
	want := MenuChoice{Subnet: "rack-1", Entry: "worker", PIN: true, By: `k"im`, From: "10.20.0.100", At: time.Unix(1_800_000_000, 0).UTC()}
	m.SetMenu(want)
	if got, ok := m.Menu(); !ok || got != want {
		t.Errorf("got %+v", got)
	}
}

func TestValidateRescue(t *testing.T) {
	for name, test := range map[string]struct {
		rescue Rescue
		want   string
	}{
		"a shell on the console": {Rescue{Autologin: true}, ""},
		"nobody":                 {Rescue{}, "nobody could log in"},
		"no key":                 {Rescue{SSHKeys: []string{"hello"}}, "spec.rescue.sshKeys[0]"},
	} {
		m := &Machine{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: MachineSpec{Rescue: &test.rescue}}
		err := ValidateMachine(m, nil).ToAggregate()
		if (err != nil) != (test.want != "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
