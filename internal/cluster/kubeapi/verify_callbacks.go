package kubeapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What API servers call during a verification; cmd/coldrack-probe answers it.
const (
	callbackPort = 8443
	// webhookName is the configuration's; the webhook in it needs a name of three parts.
	webhookName     = "coldrack-verify"
	webhookFullName = "configmaps.verify.coldrack.dev"
	answeredBy      = "answered-by"
	// labelRun is on the object that the webhook is for.
	labelRun = "coldrack.dev/verify"

	apiGroup       = "verify.coldrack.dev"
	apiVersion     = "v1"
	apiServiceName = apiVersion + "." + apiGroup
	apiPath        = "/apis/" + apiGroup + "/" + apiVersion + "/whoami"

	checkWebhook       = "admission webhook"
	checkAggregatedAPI = "aggregated API"
)

// forgottenAfter is when an APIService of ours cannot belong to a verification that runs: one has it for two minutes.
const forgottenAfter = 15 * time.Minute

var apiServices = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}

// callbacks has every API server call a webhook and an aggregated API that the probes serve. API servers call from their
// node's own network and not from a pod's.
func (v *verification) callbacks(ctx context.Context, callee *callee, ready bool) {
	if !ready {
		for _, name := range []string{checkWebhook, checkAggregatedAPI} {
			v.tell(ctx, Check{Name: name, Target: v.o.Target.Cluster},
				errors.New("not looked at: no probe pod is ready, so nothing would answer the API servers; see the checks \"pod runs\""))
		}
		return
	}
	v.webhook(ctx, callee)
	v.aggregatedAPI(ctx, callee)
}

// webhook registers a webhook and has every API server admit an object that is for it.
func (v *verification) webhook(ctx context.Context, callee *callee) {
	configurations := v.connection.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	run := strings.ToLower(rand.Text())
	defer v.removeCallbacks(ctx)
	if _, err := configurations.Create(ctx, webhookConfiguration(callee, run), metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
		v.tell(ctx, Check{Name: checkWebhook, Target: webhookName}, err)
		return
	}
	each(ctx, v.o.Target.Servers, func(ctx context.Context, server netip.AddrPort) {
		v.within(ctx, v.o.callSettle+checkTimeout, checkWebhook, "from "+server.String(), func(ctx context.Context) (string, error) {
			node, err := v.admit(ctx, server, run)
			if err != nil {
				return "", fmt.Errorf("the API server does not get an answer of a webhook in a pod: %s", v.advised(v.nodeAt(server.Addr()), err.Error()))
			}
			return "an object was changed by the webhook on " + node, nil
		})
	})
}

// webhookConfiguration is for one object only: a ConfigMap of this run in our namespace. So that the reason of a failed
// call is told, such an object is refused then; no other object of a cluster is ever sent to the webhook, also when it
// is left behind.
func webhookConfiguration(callee *callee, run string) *admission.MutatingWebhookConfiguration {
	fail, exact, none := admission.Fail, admission.Exact, admission.SideEffectClassNone
	namespaced, seconds, port, path := admission.NamespacedScope, int32(10), int32(callbackPort), "/mutate"
	return &admission.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: webhookName},
		Webhooks: []admission.MutatingWebhook{{
			Name: webhookFullName,
			ClientConfig: admission.WebhookClientConfig{CABundle: callee.authority,
				Service: &admission.ServiceReference{Namespace: verifyNamespace, Name: probeName, Port: &port, Path: &path}},
			Rules: []admission.RuleWithOperations{{Operations: []admission.OperationType{admission.Create},
				Rule: admission.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}, Scope: &namespaced}}},
			FailurePolicy: &fail, MatchPolicy: &exact, SideEffects: &none, TimeoutSeconds: &seconds, AdmissionReviewVersions: []string{"v1"},
			// The API server sets this label of namespaces itself.
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: verifyNamespace}},
			ObjectSelector:    &metav1.LabelSelector{MatchLabels: map[string]string{labelRun: run}},
		}},
	}
}

// admit has one API server admit an object, without keeping it, until the webhook has changed it; it returns the node of the probe that
// did. A new webhook takes each API server a moment to notice.
func (v *verification) admit(ctx context.Context, server netip.AddrPort, run string) (node string, err error) {
	target := v.o.Target
	target.Servers = []netip.AddrPort{server}
	connection, err := Connect(target)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: verifyNamespace, Name: "admitted", Labels: map[string]string{labelRun: run}}}
	return persist(ctx, v.o.callSettle, func(ctx context.Context) (string, error) {
		admitted, err := connection.client.CoreV1().ConfigMaps(verifyNamespace).Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return "", err
		}
		if node, ok := admitted.Data[answeredBy]; ok {
			return node, nil
		}
		return "", errors.New("it admits an object without calling the webhook that is registered for it")
	})
}

// aggregatedAPI registers an API and has every API server pass a request on. The APIService is there for as
// long as this takes and no longer: one that does not answer makes discovery slow and keeps namespaces from ending.
func (v *verification) aggregatedAPI(ctx context.Context, callee *callee) {
	defer v.removeCallbacks(ctx)
	if !v.within(ctx, v.o.callSettle+checkTimeout, checkAggregatedAPI, apiServiceName, func(ctx context.Context) (string, error) {
		if _, err := v.connection.dynamic.Resource(apiServices).Create(ctx, apiService(callee), metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
			return "", err
		}
		detail, err := persist(ctx, v.o.callSettle, v.available)
		if err != nil {
			return "", fmt.Errorf("API servers do not reach an API in a pod: %s", v.advised("the control plane's node", err.Error()))
		}
		return detail, nil
	}) {
		return
	}
	each(ctx, v.o.Target.Servers, func(ctx context.Context, server netip.AddrPort) {
		v.within(ctx, v.o.callSettle+checkTimeout, checkAggregatedAPI, "from "+server.String(), func(ctx context.Context) (string, error) {
			detail, err := persist(ctx, v.o.callSettle, func(ctx context.Context) (string, error) { return v.aggregated(ctx, server) })
			if err != nil {
				return "", fmt.Errorf("the API server does not get an answer of an API in a pod: %s", v.advised(v.nodeAt(server.Addr()), err.Error()))
			}
			return detail, nil
		})
	})
}

// apiService is of a group that nothing else has, and the last that discovery lists.
func apiService(callee *callee) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": apiServiceName},
		"spec": map[string]any{
			"group": apiGroup, "version": apiVersion, "groupPriorityMinimum": int64(1), "versionPriority": int64(1),
			"caBundle": callee.authorityBase64(),
			"service":  map[string]any{"namespace": verifyNamespace, "name": probeName, "port": int64(callbackPort)},
		},
	}}
}

// available looks whether API servers find the aggregated API; the error is in their words.
func (v *verification) available(ctx context.Context) (string, error) {
	object, err := v.connection.dynamic.Resource(apiServices).Get(ctx, apiServiceName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return readAvailable(object)
}

func readAvailable(object *unstructured.Unstructured) (string, error) {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range conditions {
		condition, _ := c.(map[string]any)
		if condition["type"] != "Available" {
			continue
		}
		if condition["status"] == "True" {
			return "Available", nil
		}
		return "", fmt.Errorf("not Available: %v: %v", condition["reason"], condition["message"])
	}
	return "", errors.New("no API server has said yet whether it is Available")
}

// aggregated asks one API server for what a probe serves.
func (v *verification) aggregated(ctx context.Context, server netip.AddrPort) (string, error) {
	for i, s := range v.o.Target.Servers {
		if s == server {
			status, body, err := v.connection.ask(ctx, i, apiPath)
			if err != nil {
				return "", reason(err)
			}
			detail, err := readAggregated(status, body)
			if status == http.StatusServiceUnavailable {
				// The API server asks nobody then; why that is, the APIService says.
				if _, why := v.available(ctx); why != nil {
					err = fmt.Errorf("%w; %w", err, why)
				}
			}
			return detail, err
		}
	}
	return "", fmt.Errorf("%s is no API server of the cluster", server)
}

// readAggregated reads the probe's answer, or the API server's that there is none.
func readAggregated(status int, body []byte) (string, error) {
	var answer struct{ Kind, Node, User, Message string }
	err := json.Unmarshal(body, &answer)
	if status != http.StatusOK {
		return "", fmt.Errorf("%d %s", status, cmp.Or(answer.Message, strings.TrimSpace(string(body[:min(len(body), 300)]))))
	}
	if err != nil || answer.Kind != "Identity" {
		return "", fmt.Errorf("the answer is not the probe's: %.300s", body)
	}
	if answer.User == "" {
		return "", errors.New("the API server does not say for whom it asks; see its --requestheader and --proxy-client flags")
	}
	return fmt.Sprintf("answered on %s, for %s", answer.Node, answer.User), nil
}

// persist tries until it goes well or the time is up, and returns the last error. What is new takes API servers a moment.
func persist(ctx context.Context, limit time.Duration, try func(context.Context) (string, error)) (string, error) {
	for began := time.Now(); ; {
		detail, err := try(ctx)
		if err == nil || time.Since(began) >= limit {
			return detail, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(pollPause):
		}
	}
}

// removeCallbacks ends all calls of API servers, also when ctx has ended. It tells only of a failure: the clean-up
// at the end tries again and is told.
func (v *verification) removeCallbacks(ctx context.Context) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	if _, err := v.connection.removeCallbacks(limited); err != nil {
		v.tell(ctx, Check{Name: "clean-up", Target: webhookName}, err)
	}
}

// removeCallbacks deletes what API servers would call; it tells whether there was anything.
func (c *Connection) removeCallbacks(ctx context.Context) (there bool, err error) {
	var errs []error
	for _, remove := range []func() error{
		func() error {
			return c.dynamic.Resource(apiServices).Delete(ctx, apiServiceName, metav1.DeleteOptions{})
		},
		func() error {
			return c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(ctx, webhookName, metav1.DeleteOptions{})
		},
	} {
		err := remove()
		there = there || err == nil
		if !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return there, errors.Join(errs...)
}

// removeForgotten deletes the APIService of a verification that was killed, without waiting for the next one: when its
// probes or their certificate end, no namespace of the cluster could.
func (c *Connection) removeForgotten(ctx context.Context, age time.Duration) (removed bool, err error) {
	object, err := c.dynamic.Resource(apiServices).Get(ctx, apiServiceName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case time.Since(object.GetCreationTimestamp().Time) < age:
		return false, nil
	}
	return c.removeCallbacks(ctx)
}
