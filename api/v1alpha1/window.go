package v1alpha1

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Weekday is a day of the week.
// +kubebuilder:validation:Enum=Monday;Tuesday;Wednesday;Thursday;Friday;Saturday;Sunday
type Weekday string

// Day of the package time; false when there is no such day.
func (d Weekday) Day() (time.Weekday, bool) {
	for day := time.Sunday; day <= time.Saturday; day++ {
		if day.String() == string(d) {
			return day, true
		}
	}
	return 0, false
}

// MaintenanceWindow is a recurring time.
//
// +kubebuilder:validation:XValidation:rule="has(self.to) != has(self.duration)",message="say when the window ends: either to or duration"
type MaintenanceWindow struct {
	// Days on which it opens. Default: every day.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=7
	Days []Weekday `json:"days,omitempty"`
	// From is the time of day at which it opens, such as 22:00.
	// +kubebuilder:validation:Pattern=`^([01][0-9]|2[0-3]):[0-5][0-9]$`
	From string `json:"from"`
	// To is the time of day at which it closes, such as 05:30. One that is earlier than from is on the next day.
	// +optional
	// +kubebuilder:validation:Pattern=`^([01][0-9]|2[0-3]):[0-5][0-9]$`
	To string `json:"to,omitempty"`
	// Duration is how long it stays open, instead of to, at most 168h.
	// +optional
	Duration *metav1.Duration `json:"duration,omitempty"`
	// TimeZone of from and to, a name of the IANA database such as Europe/Berlin. Default UTC.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TimeZone string `json:"timeZone,omitempty"`
}

// ParseTimeOfDay reads a time such as 22:00, as the time since midnight by the clock.
func ParseTimeOfDay(text string) (time.Duration, error) {
	at, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("%q is no time of day such as 22:00", text)
	}
	return time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute, nil
}

// maxWindow is the longest window: a week, after which it opens again.
const maxWindow = 7 * 24 * time.Hour

// ValidateMaintenanceWindows refuses windows that never open or never close.
func ValidateMaintenanceWindows(at *field.Path, windows []MaintenanceWindow) field.ErrorList {
	var errs field.ErrorList
	for i := range windows {
		w, at := &windows[i], at.Index(i)
		invalid := func(name string, value any, reason string) {
			errs = append(errs, field.Invalid(at.Child(name), value, reason))
		}
		for j, day := range w.Days {
			if _, ok := day.Day(); !ok {
				errs = append(errs, field.NotSupported(at.Child("days").Index(j), day, []Weekday{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}))
			} else if slices.Index(w.Days, day) < j {
				errs = append(errs, field.Duplicate(at.Child("days").Index(j), day))
			}
		}
		if _, err := ParseTimeOfDay(w.From); err != nil {
			invalid("from", w.From, "must be a time of day such as 22:00")
		}
		switch {
		case (w.To == "") == (w.Duration == nil):
			errs = append(errs, field.Required(at, "say when it closes: either to, such as 05:30, or duration, such as 6h"))
		case w.Duration != nil && (w.Duration.Duration < time.Minute || w.Duration.Duration > maxWindow):
			invalid("duration", w.Duration.Duration.String(), "must be at least 1m and at most 168h")
		case w.To == w.From:
			invalid("to", w.To, "is the same as from; for a whole day, set duration: 24h instead")
		case w.To != "":
			if _, err := ParseTimeOfDay(w.To); err != nil {
				invalid("to", w.To, "must be a time of day such as 05:30")
			}
		}
		if problem := knownTimezone(w.TimeZone); w.TimeZone != "" && problem != nil {
			invalid("timeZone", w.TimeZone, problem.Error())
		}
	}
	return errs
}
