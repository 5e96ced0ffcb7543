package nodeconfig_test

import (
	"strings"
	"testing"

	"coldrack.dev/internal/contract/nodeconfig"
)

func debian() *nodeconfig.ImageFacts {
	return &nodeconfig.ImageFacts{
		Version:     nodeconfig.FactsVersion,
		Users:       map[string]int{"root": 0, "postgres": 104, "nobody": 65534, "admin": 1000},
		Groups:      map[string]int{"root": 0, "postgres": 108, "adm": 4, "docker": 990, "admin": 1000},
		Timezones:   []string{"Etc/UTC", "Europe/Berlin"},
		Units:       []string{"getty@.service", "nginx.service", "systemd-networkd.service"},
		MaskedUnits: []string{"apt-daily.timer"},
		Programs:    map[string][]string{"/usr/bin": {"bash", "sh"}, "/usr/sbin": {"nologin"}},
	}
}

func TestCheckOfAnImage(t *testing.T) {
	users := func(name, shell string) nodeconfig.Config {
		return nodeconfig.Config{Users: []nodeconfig.User{{Name: name, Shell: shell}}}
	}
	owner := func(s string) nodeconfig.Config {
		return nodeconfig.Config{Files: []nodeconfig.File{{Path: "/x", Owner: s}}, Users: []nodeconfig.User{{Name: "ann"}}}
	}
	units := func(list ...nodeconfig.Unit) nodeconfig.Config { return nodeconfig.Config{Units: list} }
	for name, test := range map[string]struct {
		config nodeconfig.Config
		want   string // "" where the image has it all
	}{
		"nothing asked":                        {nodeconfig.Config{}, ""},
		"a time zone that it has":              {nodeconfig.Config{Timezone: "Europe/Berlin"}, ""},
		"UTC without any data":                 {nodeconfig.Config{Timezone: "UTC"}, ""},
		"a time zone that it lacks":            {nodeconfig.Config{Timezone: "US/Pacific"}, `timezone: "US/Pacific" is not a time zone of image debian-13`},
		"a new login":                          {users("ann", ""), ""},
		"a login that it has":                  {users("admin", ""), ""},
		"a system account":                     {users("postgres", ""), `users[0].name: "postgres" is a system account of image debian-13 (number 104); choose another name`},
		"a group":                              {users("docker", ""), `users[0].name: "docker" is a group of image debian-13; choose another name`},
		"sudo that it lacks":                   {nodeconfig.Config{Users: []nodeconfig.User{{Name: "ann", Sudo: true}}}, "users[0].sudo: image debian-13 has no sudo"},
		"a shell by its old name":              {users("ann", "/bin/sh"), ""},
		"a shell that it lacks":                {users("ann", "/usr/bin/zsh"), "users[0].shell: /usr/bin/zsh is not in image debian-13"},
		"a shell in a folder that is not told": {users("ann", "/opt/fish/bin/fish"), ""},
		"an owner of the image":                {owner("postgres:adm"), ""},
		"an owner of users":                    {owner("ann:ann"), ""},
		"an owner that is nobody":              {owner("bob:adm"), `files[0].owner: "bob:adm": image debian-13 has no user bob`},
		"a group that is none":                 {owner("ann:wheel"), `files[0].owner: "ann:wheel": image debian-13 has no group wheel`},
		"a unit that it has":                   {units(nodeconfig.Unit{Name: "nginx.service", Enabled: true}), ""},
		"an instance of a template":            {units(nodeconfig.Unit{Name: "getty@ttyS1.service", Enabled: true}), ""},
		"a unit with its content":              {units(nodeconfig.Unit{Name: "x.service", Enabled: true, Content: "[Install]"}), ""},
		"a unit that it lacks":                 {units(nodeconfig.Unit{Name: "x.service"}, nodeconfig.Unit{Name: "y.timer", Enabled: true}), "units[1].name: image debian-13 has no unit file y.timer to enable"},
		"the content of an instance only":      {units(nodeconfig.Unit{Name: "x@1.service", Enabled: true, Content: "[Install]"}), "units[0].name: image debian-13 has no unit file x@.service"},
		"a unit that it masks":                 {units(nodeconfig.Unit{Name: "apt-daily.timer", Enabled: true}), "units[0].name: apt-daily.timer is masked in image debian-13"},
		"a masked unit with content":           {units(nodeconfig.Unit{Name: "apt-daily.timer", Enabled: true, Content: "[Install]"}), ""},
		"a unit that is to be masked":          {units(nodeconfig.Unit{Name: "absent.service", Masked: true}), ""},
		"a unit among the files": {nodeconfig.Config{Units: []nodeconfig.Unit{{Name: "y.timer", Enabled: true}},
			Files: []nodeconfig.File{{Path: "/etc/systemd/system/y.timer"}}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := debian().Check(test.config, "debian-13")
			if (err == nil) != (test.want == "") || (err != nil && !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// An image without systemd-networkd would be installed and never be heard of.
func TestCheckOfAnImageWithoutANetwork(t *testing.T) {
	facts := debian()
	facts.Units = nil
	err := facts.Check(nodeconfig.Config{Interfaces: []nodeconfig.Interface{{MAC: "52:54:00:00:00:01"}}}, "debian-13")
	if err == nil || !strings.Contains(err.Error(), "interfaces: image debian-13 has no unit file systemd-networkd.service") {
		t.Errorf("got %v", err)
	}
}

func TestFactsThatSayNothing(t *testing.T) {
	newer := debian()
	newer.Version++
	for name, facts := range map[string]*nodeconfig.ImageFacts{"an older builder's": nil, "a newer builder's": newer} {
		if err := facts.Check(nodeconfig.Config{Timezone: "US/Pacific"}, "debian-13"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
