package kubeapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// conditionReason is the reason of every condition that we set.
const conditionReason = "Coldrack"

// reconcileRequest decides about one certificate request and signs it where that is due. The answer is nil for a
// request that needs nobody's attention.
func (w *work) reconcileRequest(ctx context.Context, name string) (*RequestState, error) {
	csr := w.request(name)
	if csr == nil || len(csr.Status.Certificate) > 0 {
		return nil, nil
	}
	state := &RequestState{Name: name, Signer: csr.Spec.SignerName, Requester: csr.Spec.Username,
		Phase: RequestPending, Created: csr.CreationTimestamp.Time}
	if c := condition(csr, certificates.CertificateDenied); c != nil {
		state.Phase, state.Reason = RequestDenied, c.Message
		return w.known(state), nil
	}
	if c := condition(csr, certificates.CertificateFailed); c != nil {
		state.Phase, state.Reason = RequestFailed, c.Message
		return w.known(state), nil
	}
	options := w.runner.options()
	rules := policy{wanted: &options.Wanted, servers: options.Target.Servers, node: w.node, nodes: w.allNodes}
	v := rules.judge(csr, time.Now())
	state.Reason = v.reason
	personApproved := condition(csr, certificates.CertificateApproved) != nil
	switch v.decision {
	case ignored:
		return nil, nil
	case later:
		return state, nil
	case askPerson:
		if !personApproved {
			return state, nil
		}
	case refused:
		return w.refuse(ctx, csr, state, personApproved)
	}
	if !personApproved {
		var err error
		if csr, err = w.setCondition(ctx, csr, certificates.CertificateApproved, v.reason); err != nil {
			return state, err
		}
	}
	pem, err := options.Sign(v.template, v.public)
	if err != nil {
		state.Reason = fmt.Sprintf("approved, but the authority did not sign: %v", err)
		return state, fmt.Errorf("certificate request %s: %s", name, state.Reason)
	}
	csr = csr.DeepCopy()
	csr.Status.Certificate = pem
	if _, err := w.connection.client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, csr, metav1.UpdateOptions{FieldManager: FieldManager}); err != nil {
		return state, fmt.Errorf("certificate request %s: deliver the certificate: %w", name, err)
	}
	w.runner.log.Info("certificate signed", "cluster", w.connection.target.Cluster, "request", name,
		"signer", csr.Spec.SignerName, "requester", csr.Spec.Username, "subject", v.template.Subject.String(), "reason", v.reason)
	return nil, nil
}

// refuse denies a request. One that somebody approved can only fail.
func (w *work) refuse(ctx context.Context, csr *certificates.CertificateSigningRequest, state *RequestState, personApproved bool) (*RequestState, error) {
	kind, phase := certificates.CertificateDenied, RequestDenied
	if personApproved {
		kind, phase = certificates.CertificateFailed, RequestFailed
	}
	if _, err := w.setCondition(ctx, csr, kind, state.Reason); err != nil {
		return state, err
	}
	state.Phase = phase
	w.runner.log.Warn("certificate request refused", "cluster", w.connection.target.Cluster, "request", csr.Name,
		"signer", csr.Spec.SignerName, "requester", csr.Spec.Username, "reason", state.Reason)
	return state, nil
}

// known leaves out requests of other signers.
func (w *work) known(state *RequestState) *RequestState {
	ours := []string{certificates.KubeletServingSignerName, certificates.KubeAPIServerClientKubeletSignerName,
		certificates.KubeAPIServerClientSignerName, signerLegacy}
	if !slices.Contains(ours, state.Signer) {
		return nil
	}
	return state
}

func (w *work) setCondition(ctx context.Context, csr *certificates.CertificateSigningRequest, kind certificates.RequestConditionType, message string) (*certificates.CertificateSigningRequest, error) {
	csr = csr.DeepCopy()
	csr.Status.Conditions = append(csr.Status.Conditions, certificates.CertificateSigningRequestCondition{
		Type: kind, Status: corev1.ConditionTrue, Reason: conditionReason, Message: message})
	requests := w.connection.client.CertificatesV1().CertificateSigningRequests()
	var after *certificates.CertificateSigningRequest
	var err error
	if kind == certificates.CertificateFailed {
		after, err = requests.UpdateStatus(ctx, csr, metav1.UpdateOptions{FieldManager: FieldManager})
	} else {
		after, err = requests.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{FieldManager: FieldManager})
	}
	if err != nil {
		return nil, fmt.Errorf("certificate request %s: set condition %s: %w", csr.Name, kind, err)
	}
	return after, nil
}

func condition(csr *certificates.CertificateSigningRequest, kind certificates.RequestConditionType) *certificates.CertificateSigningRequestCondition {
	for i := range csr.Status.Conditions {
		if csr.Status.Conditions[i].Type == kind {
			return &csr.Status.Conditions[i]
		}
	}
	return nil
}
