package settings

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

type config struct {
	DataDir    string        `json:"dataDir"`
	BootPort   int           `json:"bootPort"`
	NoBoot     bool          `json:"noBoot,omitempty"`
	Interfaces []string      `json:"interfaces,omitempty"`
	Interval   time.Duration `json:"heartbeatInterval"`
	EtcdCAFile string        `json:"etcdCAFile,omitempty"`
}

func bind(t *testing.T, args ...string) (*config, *Set) {
	t.Helper()
	c := &config{DataDir: "/default", BootPort: 7080, Interval: 30 * time.Second}
	set, err := Bind(c, map[string]Option{
		"dataDir": {}, "bootPort": {}, "noBoot": {}, "interfaces": {}, "heartbeatInterval": {}, "etcdCAFile": {Env: "OTHER_NAME"},
	})
	if err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	set.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return c, set
}

func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestPrecedence(t *testing.T) {
	const file = "dataDir: /file\nbootPort: 1\nnoBoot: true\ninterfaces: [file0]\n"
	tests := []struct {
		name    string
		file    string
		env     []string
		args    []string
		want    config
		sources map[string]string
	}{
		{name: "told nothing, the defaults hold",
			want:    config{DataDir: "/default", BootPort: 7080, Interval: 30 * time.Second},
			sources: map[string]string{"dataDir": "default"}},
		{name: "the file beats the default", file: file,
			want:    config{DataDir: "/file", BootPort: 1, NoBoot: true, Interfaces: []string{"file0"}, Interval: 30 * time.Second},
			sources: map[string]string{"dataDir": "f.yaml:1", "interfaces": "f.yaml:4", "heartbeatInterval": "default"}},
		{name: "the environment beats the file", file: file, env: []string{"COLDRACK_DATA_DIR", "/env", "COLDRACK_INTERFACES", "e0, e1,"},
			want:    config{DataDir: "/env", BootPort: 1, NoBoot: true, Interfaces: []string{"e0", "e1"}, Interval: 30 * time.Second},
			sources: map[string]string{"dataDir": "environment COLDRACK_DATA_DIR", "bootPort": "f.yaml:2"}},
		{name: "a flag beats the environment", file: file, env: []string{"COLDRACK_DATA_DIR", "/env", "COLDRACK_NO_BOOT", "true"},
			args:    []string{"--data-dir=/flag", "--no-boot=false", "--interfaces=a,b", "--interfaces=c"},
			want:    config{DataDir: "/flag", BootPort: 1, Interfaces: []string{"a", "b", "c"}, Interval: 30 * time.Second},
			sources: map[string]string{"dataDir": "flag --data-dir", "noBoot": "flag --no-boot"}},
		{name: "an empty variable is no variable", env: []string{"COLDRACK_DATA_DIR", ""},
			want: config{DataDir: "/default", BootPort: 7080, Interval: 30 * time.Second}},
		{name: "a key without a value keeps the default", file: "dataDir:\nbootPort: ~\n",
			want: config{DataDir: "/default", BootPort: 7080, Interval: 30 * time.Second}},
		{name: "a variable may have a name of its own", env: []string{"OTHER_NAME", "/ca", "COLDRACK_ETCD_CA_FILE", "/wrong"},
			want:    config{DataDir: "/default", BootPort: 7080, Interval: 30 * time.Second, EtcdCAFile: "/ca"},
			sources: map[string]string{"etcdCAFile": "environment OTHER_NAME"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, set := bind(t, test.args...)
			if err := set.Load("f.yaml", []byte(test.file), environment(test.env...)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, *c); diff != "" {
				t.Error(diff)
			}
			for _, v := range set.Values() {
				if want, ok := test.sources[v.Key]; ok && v.Source != want {
					t.Errorf("source of %s: got %q, want %q", v.Key, v.Source, want)
				}
			}
		})
	}
}

func TestBadInput(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		want []string
	}{
		{"broken YAML names the line", "dataDir: /x\n  bootPort: [1\n", nil, []string{"f.yaml: line 2:"}},
		{"an open list names the line where it begins", "bootPort: 1\ninterfaces: [a,\nnoBoot: true\n", nil, []string{"f.yaml: line 2: did not find expected"}},
		{"an unknown key names the line and all known keys", "\nfoo: 1\n", nil, []string{"f.yaml: line 2: foo: unknown key; known are dataDir, bootPort"}},
		{"a flag's name instead of a key is recognised", "data-dir: /x\n", nil, []string{"did you mean dataDir?"}},
		{"a key given twice names both lines", "dataDir: /x\n\ndataDir: /y\n", nil, []string{"line 3: dataDir: given twice, first on line 1"}},
		{"a text in place of a number", "bootPort: many\n", nil, []string{`line 1: bootPort: "many": must be a whole number`}},
		{"a number in place of a duration", "heartbeatInterval: 5\n", nil, []string{`line 1: heartbeatInterval: "5": must be a duration such as 30s`}},
		{"a text in place of a list", "interfaces: eth0\n", nil, []string{"interfaces: must be a list, such as [a, b], found a plain value"}},
		{"a mapping in a list", "interfaces:\n- a: b\n", nil, []string{"line 2: must be a list of plain values, found a mapping"}},
		{"a list in place of a text", "dataDir: [a]\n", nil, []string{"dataDir: must be a text, found a list"}},
		{"a list in place of the whole", "- a\n", nil, []string{"line 1: must be a mapping"}},
		{"a wrong variable is named", "", []string{"COLDRACK_NO_BOOT", "perhaps"}, []string{`environment variable COLDRACK_NO_BOOT: "perhaps": must be true or false`}},
		{"all mistakes are told at once", "foo: 1\nbootPort: x\n", []string{"COLDRACK_BOOT_PORT", "y"}, []string{"line 1: foo", "line 2: bootPort", "COLDRACK_BOOT_PORT"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, set := bind(t)
			err := set.Load("f.yaml", []byte(test.file), environment(test.env...))
			if err == nil {
				t.Fatal("was accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got:\n%v\nwant it to contain %q", err, want)
				}
			}
		})
	}
}

func TestExplainSaysWhereAWrongValueCameFrom(t *testing.T) {
	_, set := bind(t, "--boot-port=0")
	if err := set.Load("", nil, environment()); err != nil {
		t.Fatal(err)
	}
	err := set.Explain(errors.Join(errors.New(`bootPort: "0": too small`), errors.New("something else")))
	want := "bootPort: \"0\": too small (from flag --boot-port)\nsomething else"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestYAMLCanBeReadBack(t *testing.T) {
	c, set := bind(t, "--interfaces=a,b", "--heartbeat-interval=1m30s", "--data-dir=/with # hash")
	if err := set.Load("", nil, environment()); err != nil {
		t.Fatal(err)
	}
	again, other := bind(t)
	if err := other.Load("f.yaml", []byte(set.YAML()), environment()); err != nil {
		t.Fatalf("%v in\n%s", err, set.YAML())
	}
	if diff := cmp.Diff(*c, *again, cmp.Transformer("joined", func(list []string) string { return strings.Join(list, ",") })); diff != "" {
		t.Errorf("%s\n%s", diff, set.YAML())
	}
}

func TestEveryFieldNeedsADescription(t *testing.T) {
	if _, err := Bind(&config{}, map[string]Option{"dataDir": {}}); err == nil {
		t.Error("a field without an option was accepted")
	}
	options := map[string]Option{"dataDir": {}, "bootPort": {}, "noBoot": {}, "interfaces": {}, "heartbeatInterval": {}, "etcdCAFile": {}, "gone": {}}
	if _, err := Bind(&config{}, options); err == nil {
		t.Error("an option without a field was accepted")
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("dataDir: /x\nbootPort: 1\ninterfaces: [a]\nheartbeatInterval: 5s\n")
	f.Add("? [a]\n: b\n")
	f.Add("&a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := &config{}
		set, err := Bind(c, map[string]Option{
			"dataDir": {}, "bootPort": {}, "noBoot": {}, "interfaces": {}, "heartbeatInterval": {}, "etcdCAFile": {},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := set.Load("f.yaml", []byte(text), environment()); err != nil {
			return
		}
		// What was accepted must survive being printed and read again.
		again := &config{}
		other, _ := Bind(again, map[string]Option{
			"dataDir": {}, "bootPort": {}, "noBoot": {}, "interfaces": {}, "heartbeatInterval": {}, "etcdCAFile": {},
		})
		if err := other.Load("f.yaml", []byte(set.YAML()), environment()); err != nil {
			t.Fatalf("printed form is refused: %v\n%s", err, set.YAML())
		}
	})
}
