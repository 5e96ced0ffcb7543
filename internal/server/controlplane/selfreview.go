package controlplane

import (
	"context"
	"fmt"
	"io"
	"net/http"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

// selfReview is a kind that is never stored: a client sends one and gets it back with the answer in its status. With
// them `kubectl auth whoami` and `kubectl auth can-i` work.
type selfReview struct {
	resource schema.GroupVersionResource
	kind     string
	answer   func(u user.Info, body []byte, decoder runtime.Decoder) (runtime.Object, error)
}

func selfReviews() []selfReview {
	return []selfReview{
		{authenticationv1.SchemeGroupVersion.WithResource("selfsubjectreviews"), "SelfSubjectReview", whoAmI},
		{authorizationv1.SchemeGroupVersion.WithResource("selfsubjectaccessreviews"), "SelfSubjectAccessReview", mayI},
	}
}

func whoAmI(u user.Info, body []byte, decoder runtime.Decoder) (runtime.Object, error) {
	review := &authenticationv1.SelfSubjectReview{}
	if err := runtime.DecodeInto(decoder, body, review); err != nil {
		return nil, err
	}
	review.Status.UserInfo = authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
	for key, values := range u.GetExtra() {
		if review.Status.UserInfo.Extra == nil {
			review.Status.UserInfo.Extra = map[string]authenticationv1.ExtraValue{}
		}
		review.Status.UserInfo.Extra[key] = values
	}
	return review, nil
}

func mayI(u user.Info, body []byte, decoder runtime.Decoder) (runtime.Object, error) {
	review := &authorizationv1.SelfSubjectAccessReview{}
	if err := runtime.DecodeInto(decoder, body, review); err != nil {
		return nil, err
	}
	asked := authorizer.AttributesRecord{User: u}
	switch r, path := review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes; {
	case r != nil && path == nil:
		asked.ResourceRequest = true
		asked.Verb, asked.APIGroup, asked.APIVersion = r.Verb, r.Group, r.Version
		asked.Resource, asked.Subresource, asked.Namespace, asked.Name = r.Resource, r.Subresource, r.Namespace, r.Name
	case path != nil && r == nil:
		asked.Verb, asked.Path = path.Verb, path.Path
	default:
		return nil, fmt.Errorf("spec: exactly one of resourceAttributes and nonResourceAttributes is needed")
	}
	decision, reason, err := authorize(context.Background(), asked)
	review.Status = authorizationv1.SubjectAccessReviewStatus{
		Allowed: decision == authorizer.DecisionAllow, Denied: decision == authorizer.DecisionDeny, Reason: reason,
	}
	return review, err
}

// serveSelfReviews adds the reviews to the API and to discovery.
func serveSelfReviews(server *genericapiserver.GenericAPIServer) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{authenticationv1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)
	for _, review := range selfReviews() {
		gv := review.resource.GroupVersion()
		listed := metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
		group := metav1.APIGroup{Name: gv.Group, Versions: []metav1.GroupVersionForDiscovery{listed}, PreferredVersion: listed}
		resources := []metav1.APIResource{{Name: review.resource.Resource, Kind: review.kind, SingularName: "", Verbs: metav1.Verbs{"create"}}}
		server.DiscoveryGroupManager.AddGroup(group)
		server.AggregatedDiscoveryGroupManager.AddGroupVersion(gv.Group, apidiscoveryv2.APIVersionDiscovery{
			Version: gv.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent,
			Resources: []apidiscoveryv2.APIResourceDiscovery{{
				Resource: review.resource.Resource, Scope: apidiscoveryv2.ScopeCluster, Verbs: []string{"create"},
				ResponseKind: &metav1.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: review.kind},
			}},
		})
		mux, path := server.Handler.NonGoRestfulMux, "/apis/"+gv.Group
		mux.Handle(path, discovery.NewAPIGroupHandler(codecs, group))
		mux.Handle(path+"/"+gv.Version, discovery.NewAPIVersionHandler(codecs, gv,
			discovery.APIResourceListerFunc(func() []metav1.APIResource { return resources })))
		mux.Handle(path+"/"+gv.Version+"/"+review.resource.Resource, review.handler(codecs))
	}
	return nil
}

func (s selfReview) handler(codecs serializer.CodecFactory) http.Handler {
	gv := s.resource.GroupVersion()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := func() (runtime.Object, error) {
			if r.Method != http.MethodPost {
				return nil, apierrors.NewMethodNotSupported(s.resource.GroupResource(), r.Method)
			}
			u, ok := request.UserFrom(r.Context())
			if !ok {
				return nil, apierrors.NewUnauthorized("nobody")
			}
			input, err := negotiation.NegotiateInputSerializer(r, false, codecs)
			if err != nil {
				return nil, err
			}
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			answer, err := s.answer(u, body, codecs.DecoderToVersion(input.Serializer, gv))
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			return answer, nil
		}()
		if err != nil {
			responsewriters.ErrorNegotiated(err, codecs, gv, w, r)
			return
		}
		responsewriters.WriteObjectNegotiated(codecs, negotiation.DefaultEndpointRestrictions, gv, w, r, http.StatusCreated, answer, false)
	})
}
