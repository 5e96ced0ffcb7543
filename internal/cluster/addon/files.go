package addon

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"coldrack.dev/internal/contract/manifest"
)

// File of a person's add-on.
type File struct{ Name, Content string }

// Values stand for names in files, without "${cluster." and "}".
type Values map[string]string

// Facts are what files may say of their cluster.
type Facts struct {
	Name, Version, DNSDomain, APIHost string
	APIPort                           int32
	PodCIDRs, ServiceCIDRs            []string
}

// Values of a cluster. They hold no character by which a YAML file could mean something else.
func (f Facts) Values() Values {
	v := Values{
		"name": f.Name, "version": f.Version, "dnsDomain": f.DNSDomain, "apiHost": f.APIHost, "apiPort": strconv.Itoa(int(f.APIPort)),
		"podCIDRs": strings.Join(f.PodCIDRs, ","), "serviceCIDRs": strings.Join(f.ServiceCIDRs, ","),
	}
	for key, list := range map[string][]string{"podCIDR": f.PodCIDRs, "serviceCIDR": f.ServiceCIDRs} {
		if len(list) > 0 {
			v[key] = list[0]
		}
	}
	if len(f.ServiceCIDRs) > 0 {
		if prefix, err := netip.ParsePrefix(f.ServiceCIDRs[0]); err == nil {
			// The tenth address is kube-dns', as with kubeadm.
			address := prefix.Masked().Addr()
			for range 10 {
				address = address.Next()
			}
			v["dnsAddress"] = address.String()
		}
	}
	return v
}

// placeholder is one of ours, or with a second dollar the text of one.
var placeholder = regexp.MustCompile(`\$?\$\{cluster\.([^}\n]*)\}`)

// substitute puts values into a file. Lines stay where they are.
func substitute(file File, values Values) (string, error) {
	var errs []error
	lines := strings.SplitAfter(file.Content, "\n")
	for i, line := range lines {
		lines[i] = placeholder.ReplaceAllStringFunc(line, func(found string) string {
			if escaped, ok := strings.CutPrefix(found, "$$"); ok {
				return "$" + escaped
			}
			name := placeholder.FindStringSubmatch(found)[1]
			value, ok := values[name]
			if !ok {
				errs = append(errs, fmt.Errorf("%s: line %d: there is no %s; there are %s, and $%s stands for the text itself", file.Name, i+1, found,
					strings.Join(placeholders(values), ", "), found))
			}
			return value
		})
	}
	return strings.Join(lines, ""), errors.Join(errs...)
}

func placeholders(values Values) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		names = append(names, "${cluster."+name+"}")
	}
	return names
}

// Parse reads the objects of an add-on's files, in their order. All that is wrong with them is said at once, each with file and line.
func Parse(files []File, values Values) ([]Object, error) {
	var objects []Object
	var errs []error
	for _, file := range files {
		text, err := substitute(file, values)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		documents, err := manifest.Parse(file.Name, text)
		if err != nil {
			errs = append(errs, err)
		}
		for _, d := range documents {
			o := Object{manifest.WithoutServerFields(d.Object), fmt.Sprintf("%s:%d", file.Name, max(d.Line("kind"), 1))}
			if err := acceptable(o); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", o.Source, RefOf(o.Unstructured), err))
			}
			objects = append(objects, o)
		}
	}
	if len(objects) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("there is no object in the add-on's files"))
	}
	return objects, errors.Join(append(errs, Repeated(objects)...)...)
}

// acceptable refuses what an add-on must not have.
func acceptable(o Object) error {
	ref := RefOf(o.Unstructured)
	if ref.Kind == "Secret" && ref.Group == "" {
		for _, field := range []string{"data", "stringData"} {
			if values, _, _ := unstructured.NestedMap(o.Object, field); len(values) > 0 {
				return fmt.Errorf("an add-on holds no secrets: everybody with role viewer may read it; leave %s out here and write the Secret in the cluster itself", field)
			}
		}
	}
	if ref.Group == "coldrack.dev" {
		return errors.New("is of the Coldrack server, not of the cluster: apply it with coldrack apply")
	}
	return nil
}

// Repeated are the objects that are there more than once, in whichever version of their kind.
func Repeated(objects []Object) []error {
	var errs []error
	first := map[Ref]Object{}
	for _, o := range objects {
		ref := RefOf(o.Unstructured)
		if was, twice := first[ref]; twice {
			errs = append(errs, fmt.Errorf("%s: %s is also in %s; an object can be there once", o.Source, ref, was.Source))
			continue
		}
		first[ref] = o
	}
	return errs
}
