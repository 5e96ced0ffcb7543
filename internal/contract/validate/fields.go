package validate

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// FieldError says what is wrong with one field.
type FieldError struct {
	Path    string // such as "subnets[rack-1].discovery", named as in the kind Subnet
	Problem string // what was found and what would be right
}

func (e FieldError) Error() string { return e.Path + ": " + e.Problem }

// Fields collects what is wrong with the fields of a configuration. The zero value has nothing.
type Fields struct{ errs []error }

// Err is everything that was added, each as a FieldError within the joined error; nil for nothing.
func (f *Fields) Err() error { return errors.Join(f.errs...) }

// Add a problem of the field at path.
func (f *Fields) Add(path, format string, args ...any) {
	f.errs = append(f.errs, FieldError{path, fmt.Sprintf(format, args...)})
}

// AddAll adds the problems of an IPPlan, which is at path.
func (f *Fields) AddAll(path string, problems []Problem) {
	for _, p := range problems {
		at := path + "." + p.Field
		if p.Index >= 0 {
			at += fmt.Sprintf("[%d]", p.Index)
		}
		f.Add(at, "%s", strings.TrimSpace(p.Value+" "+p.Message))
	}
}

// Interfaces checks the names of network interfaces, in a field of that name.
func (f *Fields) Interfaces(names []string) {
	seen := map[string]bool{}
	for i, name := range names {
		path := fmt.Sprintf("interfaces[%d]", i)
		switch {
		case name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n"):
			f.Add(path, "%q cannot be an interface's name", name)
		case seen[name]:
			f.Add(path, "%q is listed twice", name)
		}
		seen[name] = true
	}
}

// Leases checks what clients of the subnet at path are told; "" and 0 stand for nothing.
func (f *Fields) Leases(path, domain string, leaseTime time.Duration) {
	if domain != "" {
		if err := Domain(domain); err != nil {
			f.Add(path+".domain", "%q %v", domain, err)
		}
	}
	if leaseTime != 0 {
		if err := LeaseTime(leaseTime); err != nil {
			f.Add(path+".leaseTime", "%s %v", leaseTime, err)
		}
	}
}
