// Package settings fills one configuration struct from defaults, a YAML file, the environment and
// flags, in rising order of precedence, and remembers where each value came from.
//
// The struct's json tags are the keys of the file. From key "etcdCAFile" follow the flag
// --etcd-ca-file and the variable COLDRACK_ETCD_CA_FILE. Fields may be string, []string, int, bool or
// time.Duration.
package settings

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/contract/manifest/yamlerr"
)

// Option describes one field to Bind.
type Option struct {
	// Usage is the help text of the flag.
	Usage string
	// Env replaces the name that follows from the key.
	Env string
}

// Set is a configuration struct bound to its sources.
type Set struct {
	fields []*field
	byKey  map[string]*field
}

type field struct {
	key, flag, env, usage string
	value                 reflect.Value
	source                string
	fromFlag              *flagValue
}

// Value is one setting with its origin.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"`
	Flag   string `json:"-"`
	Env    string `json:"-"`
	Usage  string `json:"-"`
}

// Bind prepares target, a pointer to a struct that holds the defaults. Every field must have an Option.
func Bind(target any, options map[string]Option) (*Set, error) {
	set := &Set{byKey: map[string]*field{}}
	v := reflect.ValueOf(target).Elem()
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		option, ok := options[key]
		if key == "" || !ok {
			return nil, fmt.Errorf("field %s of %s has no key or no description", v.Type().Field(i).Name, v.Type())
		}
		f := &field{key: key, flag: kebab(key), env: option.Env, usage: option.Usage, value: v.Field(i), source: "default"}
		if f.env == "" {
			f.env = "COLDRACK_" + strings.ToUpper(strings.ReplaceAll(f.flag, "-", "_"))
		}
		set.fields = append(set.fields, f)
		set.byKey[key] = f
	}
	for key := range options {
		if set.byKey[key] == nil {
			return nil, fmt.Errorf("option %q describes no field", key)
		}
	}
	return set, nil
}

// AddFlags defines a flag for every field.
func (s *Set) AddFlags(flags *pflag.FlagSet) {
	for _, f := range s.fields {
		f.fromFlag = &flagValue{field: f}
		flag := flags.VarPF(f.fromFlag, f.flag, "", fmt.Sprintf("%s [$%s]", f.usage, f.env))
		if f.value.Kind() == reflect.Bool {
			flag.NoOptDefVal = "true"
		}
	}
}

// Load applies the sources in rising order of precedence: the YAML text of a file (nil: none), the
// environment, the flags that were given. All errors are reported together, each with its place.
func (s *Set) Load(fileName string, fileText []byte, lookupEnv func(string) (string, bool)) error {
	errs := s.loadFile(fileName, fileText)
	for _, f := range s.fields {
		// An empty variable counts as unset, as `VAR= coldrack serve` means in a shell.
		text, ok := lookupEnv(f.env)
		if !ok || text == "" {
			continue
		}
		if err := f.set(split(f, text)); err != nil {
			errs = append(errs, fmt.Errorf("environment variable %s: %w", f.env, err))
			continue
		}
		f.source = "environment " + f.env
	}
	for _, f := range s.fields {
		if f.fromFlag == nil || !f.fromFlag.given {
			continue
		}
		if err := f.set(f.fromFlag.texts); err != nil {
			errs = append(errs, fmt.Errorf("flag --%s: %w", f.flag, err))
			continue
		}
		f.source = "flag --" + f.flag
	}
	return errors.Join(errs...)
}

// Explain adds to each validation error, which must begin with a key and a colon, where the offending
// value came from.
func (s *Set) Explain(err error) error {
	if err == nil {
		return nil
	}
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	for i, e := range list {
		key, _, _ := strings.Cut(e.Error(), ":")
		if f := s.byKey[key]; f != nil {
			list[i] = fmt.Errorf("%w (from %s)", e, f.source)
		}
	}
	return errors.Join(list...)
}

// Values returns every setting in the order of the struct.
func (s *Set) Values() []Value {
	values := make([]Value, 0, len(s.fields))
	for _, f := range s.fields {
		values = append(values, Value{Key: f.key, Value: f.get(), Source: f.source, Flag: f.flag, Env: f.env, Usage: f.usage})
	}
	return values
}

// YAML renders the settings as a config file whose comments say where each value came from.
func (s *Set) YAML() string {
	var lines [][2]string
	width := 0
	for _, v := range s.Values() {
		text, err := yaml.Marshal(map[string]any{v.Key: v.Value})
		if err != nil {
			continue // strings, numbers and lists of strings always encode
		}
		first, rest, _ := strings.Cut(strings.TrimRight(string(text), "\n"), "\n")
		lines = append(lines, [2]string{first, v.Source})
		width = max(width, len(first))
		if rest != "" {
			for line := range strings.SplitSeq(rest, "\n") {
				lines = append(lines, [2]string{line, ""})
			}
		}
	}
	var b strings.Builder
	for _, line := range lines {
		if line[1] == "" {
			fmt.Fprintln(&b, line[0])
			continue
		}
		fmt.Fprintf(&b, "%-*s  # %s\n", min(width, 50), line[0], line[1])
	}
	return b.String()
}

func (s *Set) loadFile(name string, text []byte) []error {
	if len(text) == 0 {
		return nil
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return []error{fmt.Errorf("%s: %s", name, yamlerr.Text(err))}
	}
	if len(document.Content) == 0 {
		return nil // only comments
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s: line %d: must be a mapping of keys to values, such as \"dataDir: /var/lib/coldrack\"", name, root.Line)}
	}
	var errs []error
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		fail := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s: line %d: %s: %s", name, key.Line, key.Value, fmt.Sprintf(format, args...)))
		}
		f := s.byKey[key.Value]
		if f == nil {
			fail("unknown key%s", s.suggest(key.Value))
			continue
		}
		if line, twice := seen[key.Value]; twice {
			fail("given twice, first on line %d", line)
			continue
		}
		seen[key.Value] = key.Line
		if value.Tag == "!!null" {
			continue
		}
		texts, err := f.texts(value)
		if err == nil {
			err = f.set(texts)
		}
		if err != nil {
			fail("%v", err)
			continue
		}
		f.source = fmt.Sprintf("%s:%d", name, key.Line)
	}
	return errs
}

// texts turns a node of the file into what set takes.
func (f *field) texts(node *yaml.Node) ([]string, error) {
	if f.value.Kind() != reflect.Slice {
		if node.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("must be %s, found a %s", f.wants(), kindName(node))
		}
		return []string{node.Value}, nil
	}
	if node.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("must be a list, such as [a, b], found a %s", kindName(node))
	}
	texts := []string{}
	for _, item := range node.Content {
		if item.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: must be a list of plain values, found a %s in it", item.Line, kindName(item))
		}
		texts = append(texts, item.Value)
	}
	return texts, nil
}

func (f *field) set(texts []string) error {
	if f.value.Kind() == reflect.Slice {
		f.value.Set(reflect.ValueOf(append([]string{}, texts...)))
		return nil
	}
	text := texts[len(texts)-1]
	switch f.value.Interface().(type) {
	case string:
		f.value.SetString(text)
		return nil
	case time.Duration:
		if d, err := time.ParseDuration(text); err == nil {
			f.value.SetInt(int64(d))
			return nil
		}
	case int:
		if n, err := strconv.Atoi(text); err == nil {
			f.value.SetInt(int64(n))
			return nil
		}
	case bool:
		if b, err := strconv.ParseBool(text); err == nil {
			f.value.SetBool(b)
			return nil
		}
	}
	return fmt.Errorf("%q: must be %s", text, f.wants())
}

func (f *field) get() any {
	switch value := f.value.Interface().(type) {
	case time.Duration:
		return value.String()
	case []string:
		if value == nil {
			return []string{}
		}
		return value
	default:
		return value
	}
}

func (f *field) wants() string {
	switch f.value.Interface().(type) {
	case time.Duration:
		return "a duration such as 30s or 5m"
	case int:
		return "a whole number"
	case bool:
		return "true or false"
	case []string:
		return "a list"
	default:
		return "a text"
	}
}

func (s *Set) suggest(key string) string {
	flat := func(text string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(text)) }
	for _, f := range s.fields {
		if flat(f.key) == flat(key) {
			return fmt.Sprintf("; did you mean %s?", f.key)
		}
	}
	keys := make([]string, 0, len(s.fields))
	for _, f := range s.fields {
		keys = append(keys, f.key)
	}
	return "; known are " + strings.Join(keys, ", ")
}

func split(f *field, text string) []string {
	if f.value.Kind() != reflect.Slice {
		return []string{text}
	}
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

func kindName(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "mapping"
	case yaml.SequenceNode:
		return "list"
	default:
		return "plain value"
	}
}

// kebab turns etcdCAFile into etcd-ca-file.
func kebab(key string) string {
	var b strings.Builder
	runes := []rune(key)
	for i, r := range runes {
		if unicode.IsUpper(r) && i > 0 {
			nextLower := i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if unicode.IsLower(runes[i-1]) || nextLower {
				b.WriteByte('-')
			}
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// flagValue keeps what was given on the command line until Load has applied the weaker sources.
type flagValue struct {
	field *field
	texts []string
	given bool
}

func (v *flagValue) Set(text string) error {
	// A scalar is checked at once, so that the flag parser can say which argument is wrong.
	if v.field.value.Kind() != reflect.Slice {
		scratch := &field{value: reflect.New(v.field.value.Type()).Elem()}
		if err := scratch.set([]string{text}); err != nil {
			return fmt.Errorf("must be %s", v.field.wants())
		}
	}
	v.given = true
	v.texts = append(v.texts, split(v.field, text)...)
	return nil
}

func (v *flagValue) String() string {
	if v.field == nil {
		return ""
	}
	if list, ok := v.field.value.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.field.get())
}

func (v *flagValue) Type() string {
	switch v.field.value.Interface().(type) {
	case []string:
		return "list"
	case bool:
		return "bool"
	case int:
		return "int"
	case time.Duration:
		return "duration"
	default:
		return "string"
	}
}
