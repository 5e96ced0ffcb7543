package controlplane

import (
	"net"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

// serveCoreDiscovery shows the core group v1 in discovery, without a resource in it. kubectl prints several objects as
// one "v1 List", and reads such a document only where the server knows the group: clients take the kind List for a
// part of every version that discovery shows.
func serveCoreDiscovery(server *genericapiserver.GenericAPIServer) {
	gv := schema.GroupVersion{Version: "v1"}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, gv)
	codecs := serializer.NewCodecFactory(scheme)
	server.AggregatedLegacyDiscoveryGroupManager.AddGroupVersion("", apidiscoveryv2.APIVersionDiscovery{
		Version: gv.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
	})
	// The addresses are for clients of other networks than the one that asks, of which there are none.
	root := discovery.NewLegacyRootAPIHandler(noAddresses{}, codecs, "/api")
	mux := server.Handler.NonGoRestfulMux
	mux.Handle("/api", aggregated.WrapAggregatedDiscoveryToHandler(root,
		server.AggregatedLegacyDiscoveryGroupManager, server.AggregatedLegacyDiscoveryGroupManager))
	mux.Handle("/api/v1", discovery.NewAPIVersionHandler(codecs, gv,
		discovery.APIResourceListerFunc(func() []metav1.APIResource { return []metav1.APIResource{} })))
}

type noAddresses struct{}

func (noAddresses) ServerAddressByClientCIDRs(net.IP) []metav1.ServerAddressByClientCIDR {
	return []metav1.ServerAddressByClientCIDR{}
}
