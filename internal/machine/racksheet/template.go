package racksheet

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"text/template"
)

// values are what templates are filled with. One that a line does not have is an error where a template asks for it.
type values struct {
	row                *Row
	sequence, rackwise int
}

var errNotGiven = errors.New("the line does not say it")

func given[T comparable](v T, what string) (T, error) {
	var zero T
	if v == zero {
		return v, fmt.Errorf("%s: %w", what, errNotGiven)
	}
	return v, nil
}

// Site, Room, Rack and Chassis are as the sheet has them; Unit and Slot are numbers. Sequence counts the lines of the sheet from 1,
// RackSequence those of the machine's rack.
func (v values) Site() (string, error)    { return given(v.row.Location.Site, "site") }
func (v values) Room() (string, error)    { return given(v.row.Location.Room, "room") }
func (v values) Rack() (string, error)    { return given(v.row.Location.Rack, "rack") }
func (v values) Chassis() (string, error) { return given(v.row.Location.Chassis, "chassis") }
func (v values) Unit() (int, error)       { return given(int(v.row.Location.Unit), "unit") }
func (v values) Slot() (int, error)       { return given(int(v.row.Location.Slot), "slot") }
func (v values) Serial() (string, error)  { return given(v.row.IDs.Serial, "serial") }
func (v values) Name() (string, error)    { return given(v.row.Name, "name") }
func (v values) Group() (string, error)   { return given(v.row.Labels[LabelGroup], "group") }
func (v values) Sequence() int            { return v.sequence }
func (v values) RackSequence() int        { return v.rackwise }

// MAC is the first of the line, without colons.
func (v values) MAC() (string, error) {
	if len(v.row.IDs.MACs) == 0 {
		return given("", "mac")
	}
	return strings.ReplaceAll(v.row.IDs.MACs[0], ":", ""), nil
}

var firstNumber = regexp.MustCompile(`[0-9]{1,9}`)

// functions of templates. Sums take the number that a text has in it: num "a12" is 12.
var functions = template.FuncMap{
	"num": numberIn,
	"add": func(a, b any) (int, error) {
		x, err := numberIn(a)
		y, err2 := numberIn(b)
		return x + y, errors.Join(err, err2)
	},
	"mul": func(a, b any) (int, error) {
		x, err := numberIn(a)
		y, err2 := numberIn(b)
		return x * y, errors.Join(err, err2)
	},
	"pad": func(width int, v any) (string, error) {
		n, err := numberIn(v)
		return fmt.Sprintf("%0*d", min(width, 20), n), err
	},
	"lower": strings.ToLower,
	"ip":    addressPlus,
}

func numberIn(v any) (int, error) {
	found := firstNumber.FindString(fmt.Sprint(v))
	if found == "" {
		return 0, fmt.Errorf("%q has no number in it", fmt.Sprint(v))
	}
	return strconv.Atoi(found)
}

// addressPlus is the address that lies n addresses behind another one.
func addressPlus(base string, n any) (string, error) {
	a, err := netip.ParseAddr(base)
	if err != nil {
		return "", fmt.Errorf("%q is no address", base)
	}
	steps, err := numberIn(n)
	if err != nil {
		return "", err
	}
	sum := new(big.Int).Add(new(big.Int).SetBytes(a.AsSlice()), big.NewInt(int64(steps)))
	if len(sum.Bytes()) > len(a.AsSlice()) {
		return "", fmt.Errorf("there is no address %d behind %s", steps, base)
	}
	behind, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, len(a.AsSlice()))))
	return behind.String(), nil
}

// CheckTemplate says what is wrong with a template that a person wrote.
func CheckTemplate(text string) error {
	_, err := parseTemplate(text)
	return err
}

func parseTemplate(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(functions).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("template %q: %s", text, strings.TrimPrefix(err.Error(), "template: :1: "))
	}
	return t, nil
}

// fill fills a template in. Its errors say what of the line is missing, or wrong.
func fill(text string, v values) (string, error) {
	t, err := parseTemplate(text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := t.Execute(&b, v); err != nil {
		cause := err
		for next := errors.Unwrap(cause); next != nil && !errors.Is(next, errNotGiven); next = errors.Unwrap(cause) {
			cause = next
		}
		if errors.Is(err, errNotGiven) {
			what := err.Error()
			what = what[strings.LastIndex(what[:strings.LastIndex(what, ": ")], ": ")+2:]
			return "", fmt.Errorf("template %q asks for the %s", text, what)
		}
		return "", fmt.Errorf("template %q: %s", text, cause)
	}
	return strings.TrimSpace(b.String()), nil
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

// slug is what a name is made of: lower case, with a dash for everything that no name has.
func slug(text string) string {
	return strings.Trim(notInName.ReplaceAllString(strings.ToLower(text), "-"), "-")
}
