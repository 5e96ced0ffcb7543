package addon

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// Addon is one of a cluster's add-ons that a person wrote.
type Addon struct {
	Name string
	// Generation of the Addon that says all of this.
	Generation int64
	// Version is what a person calls it; may be empty.
	Version string
	// Order: what has a lower one is healthy before the objects of this one are applied for the first time.
	Order int32
	// Namespace of objects that name none.
	Namespace string
	Objects   []Object
	// Report says only that objects were changed in the cluster, instead of changing them back.
	Report bool
	// Data permits to remove Namespaces, definitions of kinds, volumes and claims that it has no more.
	Data bool
	// TakeOver permits to take fields from others of objects that are in the cluster already.
	TakeOver bool
	// Timeout after which objects that are not healthy count as failed.
	Timeout time.Duration
	// Removed: all of its objects are to go.
	Removed bool
	// Problem is why its files cannot be used; what is in the cluster stays then.
	Problem string
}

// Same says whether two are the same wish. Objects are compared by where they are in memory: they are never changed.
func (a Addon) Same(b Addon) bool {
	if len(a.Objects) != len(b.Objects) || len(a.Objects) > 0 && &a.Objects[0] != &b.Objects[0] {
		return false
	}
	a.Objects, b.Objects = nil, nil
	return reflect.DeepEqual(a, b)
}

// Digest stands for all that is wanted of an add-on.
func (a *Addon) Digest() string { return DigestOf(a.Objects...) }

// Ordered sorts add-ons by their order, then by name. Those that are to go come last to first, before all others.
func Ordered(addons []Addon) []Addon {
	addons = slices.Clone(addons)
	slices.SortStableFunc(addons, func(a, b Addon) int {
		if a.Removed != b.Removed {
			if a.Removed {
				return -1
			}
			return 1
		}
		order := cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Name, b.Name))
		if a.Removed {
			return -order
		}
		return order
	})
	return addons
}

// Claims tell which objects several add-ons have. The first one to name an object has it; the returned errors, by add-on, say of the others who that
// is. own are the objects that every cluster has.
func Claims(own []Ref, addons []Addon) map[string][]error {
	owner := map[Ref]string{}
	for _, ref := range own {
		owner[ref] = ""
	}
	problems := map[string][]error{}
	for _, a := range Ordered(addons) {
		if a.Removed {
			continue
		}
		for _, o := range a.Objects {
			ref := RefOf(o.Unstructured)
			switch has, taken := owner[ref]; {
			case taken && has == "":
				problems[a.Name] = append(problems[a.Name], fmt.Errorf("%s: %s is one of the objects that Coldrack gives every cluster; give yours another name", o.Source, ref))
			case taken && has != a.Name:
				problems[a.Name] = append(problems[a.Name], fmt.Errorf("%s: %s is in add-on %s already; an object belongs to one add-on", o.Source, ref, has))
			default:
				owner[ref] = a.Name
			}
		}
	}
	return problems
}

// Phase of an add-on.
type Phase string

const (
	// Waiting for an add-on of a lower order, or for the cluster.
	Waiting Phase = "Waiting"
	// Applying: not all objects are in the cluster as they are wanted.
	Applying Phase = "Applying"
	// Settling: its objects are applied, and not all of them are healthy yet.
	Settling Phase = "Settling"
	// Ready: all objects are applied and healthy.
	Ready Phase = "Ready"
	// Drifted: somebody has changed objects in the cluster, and the add-on only reports that.
	Drifted Phase = "Drifted"
	// Broken: it needs a person.
	Broken Phase = "Failed"
	// Removing: its objects are being removed.
	Removing Phase = "Removing"
	// Gone: its objects were removed.
	Gone Phase = "Gone"
)

// State of an add-on in its cluster.
type State struct {
	Name    string
	Version string
	// Generation that was looked after.
	Generation int64
	Phase      Phase
	// Message for a person: what is missing, which object, why.
	Message string
	// Digest of what was applied last, whole and without an error.
	Digest string
	// AppliedAt is when that was.
	AppliedAt time.Time
	// Objects that it has, and how many of them are healthy.
	Objects, Healthy int
	// Left are objects that it has dropped and that stay in the cluster, with the reason.
	Left []string
}
