package addon

import (
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// Of is an Addon without its objects.
func Of(a *v1alpha1.Addon) Addon {
	return Addon{Name: a.Name, Generation: a.Generation, Version: a.Spec.Version, Order: a.Spec.Order, Namespace: a.TargetNamespace(), Report: a.Spec.WhenChanged == v1alpha1.DriftReport,
		Data: a.Spec.RemoveData, TakeOver: a.Spec.TakeOver, Timeout: a.WaitsFor(), Removed: a.DeletionTimestamp != nil}
}

// ObjectsOf reads the objects of an add-on's files.
func ObjectsOf(a *v1alpha1.Addon, facts Facts) ([]Object, error) {
	if errs := v1alpha1.ValidateAddon(a); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	var files []File
	for i := range a.Spec.Files {
		text, err := a.Spec.Files[i].Text()
		if err != nil {
			return nil, err
		}
		files = append(files, File{Name: a.Spec.Files[i].Name, Content: text})
	}
	return Parse(files, facts.Values())
}

// FactsOf are what files may say of a cluster.
func FactsOf(c *v1alpha1.Cluster) Facts {
	c = c.DeepCopy()
	c.Default()
	f := Facts{Name: c.Name, Version: c.Spec.Version, DNSDomain: c.Spec.Network.DNSDomain, PodCIDRs: c.Spec.Network.PodCIDRs, ServiceCIDRs: c.Spec.Network.ServiceCIDRs}
	f.APIHost, f.APIPort = c.Spec.Endpoint.Host, c.Spec.Endpoint.Port
	if v := c.Spec.Endpoint.VirtualIP; f.APIHost == "" && v != nil {
		f.APIHost = v.Address
	}
	if f.APIHost == "" {
		// status.endpoint is the URL that plans were rendered with.
		host := strings.TrimPrefix(c.Status.Endpoint, "https://")
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			f.APIHost = strings.Trim(host[:i], "[]")
		}
	}
	return f
}

// Images that objects' pods run; references finds them in a decoded document.
func Images(objects []Object, references func(document any) []string) []string {
	var images []string
	for _, o := range objects {
		images = append(images, references(o.Object)...)
	}
	slices.Sort(images)
	return slices.Compact(images)
}
