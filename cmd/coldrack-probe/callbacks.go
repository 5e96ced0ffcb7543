package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// The aggregated API, and what the webhook adds to an object. internal/cluster/kubeapi has the same words.
const (
	apiGroupVersion = "verify.coldrack.dev/v1"
	answeredBy      = "answered-by"
	maxReview       = 1 << 20
)

// callbacks is what API servers call: an admission webhook and an aggregated API. Nothing here makes the probe connect to
// anything, so who asks is not verified.
func callbacks(who Identity) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /mutate", func(w http.ResponseWriter, r *http.Request) { mutate(w, r, who) })
	// Without resources: clients that list kinds find nothing here that they would then ask for.
	mux.HandleFunc("GET /apis/"+apiGroupVersion, func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": apiGroupVersion, "resources": []any{}})
	})
	mux.HandleFunc("GET /apis/"+apiGroupVersion+"/whoami", func(w http.ResponseWriter, r *http.Request) {
		// The API server says in a header for whom it asks.
		respond(w, http.StatusOK, caller{Kind: "Identity", APIVersion: apiGroupVersion, User: r.Header.Get("X-Remote-User"), Identity: who})
	})
	return mux
}

// caller is the answer of the aggregated API: who answers, and for whom the API server asked.
type caller struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	User       string `json:"user"`
	Identity
}

// admissionReview has the fields of admission.k8s.io/v1 that matter here.
type admissionReview struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"`
	Request    *admissionRequest  `json:"request,omitempty"`
	Response   *admissionResponse `json:"response,omitempty"`
}

type admissionRequest struct {
	UID string `json:"uid"`
}

type admissionResponse struct {
	UID       string `json:"uid"`
	Allowed   bool   `json:"allowed"`
	PatchType string `json:"patchType"`
	Patch     []byte `json:"patch"`
}

// mutate gives an object data that say which node's probe answered.
func mutate(w http.ResponseWriter, r *http.Request, who Identity) {
	var review admissionReview
	err := json.NewDecoder(io.LimitReader(r.Body, maxReview)).Decode(&review)
	if err == nil && review.Request == nil {
		err = fmt.Errorf("%s has no request", review.Kind)
	}
	if err != nil {
		http.Error(w, "want an AdmissionReview: "+err.Error(), http.StatusBadRequest)
		return
	}
	patch, err := json.Marshal([]map[string]any{{"op": "add", "path": "/data", "value": map[string]string{answeredBy: who.Node}}})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	review.Response = &admissionResponse{UID: review.Request.UID, Allowed: true, PatchType: "JSONPatch", Patch: patch}
	review.Request = nil
	respond(w, http.StatusOK, review)
}
