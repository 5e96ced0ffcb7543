package machine

import (
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
)

// Where is a condition on a machine's place and state, such as rack=r1,unit=10-20.
type Where []term

type term struct {
	key    string
	values []string
	low    int32
	high   int32
}

// ParseWhere reads terms joined by commas, all of which must hold: site, room, rack, phase and power with one value or several
// joined by "|", and unit with a number or a range.
func ParseWhere(text string) (Where, error) {
	var w Where
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(part, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok || value == "" || !slices.Contains([]string{"site", "room", "rack", "unit", "phase", "power"}, key) {
			return nil, exit.Usagef("--where %q: want KEY=VALUE, with the keys site, room, rack, unit, phase and power; for example rack=r1,unit=10-20", part)
		}
		t := term{key: key, values: strings.Split(value, "|")}
		if key == "unit" {
			low, high, isRange := strings.Cut(value, "-")
			if !isRange {
				high = low
			}
			a, errA := strconv.ParseInt(low, 10, 32)
			b, errB := strconv.ParseInt(high, 10, 32)
			if errA != nil || errB != nil || a > b {
				return nil, exit.Usagef("--where %q: a unit is a number, or a range such as 10-20", part)
			}
			t.low, t.high = int32(a), int32(b)
		}
		w = append(w, t)
	}
	return w, nil
}

// Matches says whether all terms hold.
func (w Where) Matches(m *v1alpha1.Machine) bool {
	return !slices.ContainsFunc(w, func(t term) bool { return !t.holds(m) })
}

func (t term) holds(m *v1alpha1.Machine) bool {
	l := m.Spec.Location
	if t.key == "unit" {
		return l.Unit >= t.low && l.Unit <= t.high && l.Unit > 0
	}
	power := ""
	if m.Status.Power != nil {
		power = string(m.Status.Power.State)
	}
	value := map[string]string{"site": l.Site, "room": l.Room, "rack": l.Rack, "phase": string(m.Status.Phase), "power": power}[t.key]
	return slices.ContainsFunc(t.values, func(v string) bool { return strings.EqualFold(v, value) })
}
