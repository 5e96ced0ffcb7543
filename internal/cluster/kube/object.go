package kube

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// Object is an API object that the cluster must contain. The server applies it, again and again, so that
// what was changed by hand comes back.
type Object struct {
	// Addon groups objects that belong together: bootstrap, kube-proxy, coredns, flannel, loadbalancer.
	Addon           string
	Kind            string
	Namespace, Name string
	Content         []byte
}

// objects returns what the cluster contains from the start, in the order in which it is applied.
func (r *renderer) objects() ([]Object, error) {
	bootstrap, err := r.bootstrapObjects()
	if err != nil {
		return nil, err
	}
	proxy, err := r.proxyObjects()
	if err != nil {
		return nil, err
	}
	flannel, err := r.flannelObjects()
	if err != nil {
		return nil, err
	}
	balancer, err := r.loadBalancerObjects()
	if err != nil {
		return nil, err
	}
	var objects []Object
	for _, addon := range []struct {
		name    string
		objects []runtime.Object
	}{{"bootstrap", bootstrap}, {"kube-proxy", proxy}, {"flannel", flannel}, {"coredns", r.dnsObjects()}, {"loadbalancer", balancer}} {
		for _, object := range addon.objects {
			content, err := encodeObject(object)
			if err != nil {
				return nil, err
			}
			meta, ok := object.(metav1.Object)
			if !ok {
				return nil, fmt.Errorf("%T has no metadata", object)
			}
			objects = append(objects, Object{Addon: addon.name, Kind: object.GetObjectKind().GroupVersionKind().Kind,
				Namespace: meta.GetNamespace(), Name: meta.GetName(), Content: content})
		}
	}
	return objects, nil
}

func objectMeta(namespace, name string, labels map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}
}

// AddonVersion is the version of an add-on of a plan: that of Kubernetes where it comes with it, else the tag of its image.
func AddonVersion(plan *Plan, kubernetes, addon string) string {
	for _, o := range plan.Objects {
		if o.Addon != addon || o.Kind != "DaemonSet" && o.Kind != "Deployment" {
			continue
		}
		var document any
		if yaml.Unmarshal(o.Content, &document) != nil {
			return kubernetes // it was rendered here, so that it can be read
		}
		for _, image := range ImageReferences(document) {
			return image[strings.LastIndexByte(image, ':')+1:]
		}
	}
	return kubernetes
}
