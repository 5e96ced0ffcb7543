package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

// operationRotate is how the rotation of a key is named among operations.
const operationRotate planner.Operation = "rotate"

// tokenLifetime is how long tokens of the old key are waited for, where nobody says otherwise: those of pods last an hour, and kubelets
// have others after four fifths of it.
const tokenLifetime = 70 * time.Minute

// maxTokensNamed is how many Secrets with tokens status names.
const maxTokensNamed = 50

// rotate goes on with the rotation of a key: its first stage when there is none, the next one when every node has the present one and
// what the stage is for was done. It says whether the record has changed. Nodes take a stage as they take every change.
func (o *operation) rotate(ctx context.Context) (changed bool, err error) {
	is, wanted := o.c.Status.OpenRotation(), o.c.WantedRotation()
	if is == nil {
		if wanted == nil {
			return false, nil
		}
		return o.beginRotation(ctx, wanted)
	}
	if wanted != nil && wanted.ID != is.ID {
		o.block(fmt.Sprintf("the rotation of %s waits for that of %s", wanted.Key, is.Key), "only one key is rotated at a time; nothing is needed")
	}
	if wanted != nil && wanted.ID == is.ID && wanted.Back {
		switch is.Stage {
		case v1alpha1.RotationAccept, v1alpha1.RotationPublish: // nothing was made with the new key
			return true, o.enter(ctx, v1alpha1.RotationUndo)
		case v1alpha1.RotationSwap:
			return true, o.enter(ctx, v1alpha1.RotationReturn)
		}
	}
	was := *is
	if view, _, _ := o.Clusters.View(o.c.Name); view.Rotation != members.RotationMark(is) {
		is.Message = view.Problem // nodes are given what belongs to another stage
		return false, nil
	}
	is.Message = o.lacking()
	if is.Message == "" && is.EverywhereAt == nil {
		is.EverywhereAt = new(o.at)
	}
	if is.Message == "" {
		if is.Message, err = o.stageLacks(ctx, is); err != nil {
			is.Message = err.Error()
		}
	}
	next := members.NextStage(is.Key, is.Stage)
	if is.Message == "" && wanted != nil && wanted.ID == is.ID && wanted.Before == next {
		is.Message = fmt.Sprintf("it is held before stage %s; go on with: coldrack cluster rotate %s %s --continue", next, o.c.Name, is.Key)
	}
	if is.Message == "" {
		return true, o.enter(ctx, next)
	}
	return was.EverywhereAt == nil && is.EverywhereAt != nil, nil
}

// block says why a rotation does not begin or go on, for a person.
func (o *operation) block(reason, remedy string) {
	o.blocks = append(o.blocks, planner.Block{Operation: operationRotate, Reason: reason, Remedy: remedy})
}

// beginRotation makes the new key and records the first stage, unless something hinders it.
func (o *operation) beginRotation(ctx context.Context, wanted *v1alpha1.ClusterRotation) (begun bool, err error) {
	if wanted.Back {
		return false, nil // it was taken back before it had begun
	}
	not := fmt.Sprintf("the rotation of %s does not begin: ", wanted.Key)
	if b := planner.Begin(o.in); b != nil {
		o.block(not+strings.TrimPrefix(b.Node+": "+b.Reason, ": "), b.Remedy)
		return false, nil
	}
	if planner.Pending(o.in) {
		o.block(not+"nodes have yet to be changed", "wait until they are, or see what hinders it: coldrack cluster history "+o.c.Name)
		return false, nil
	}
	if missing := o.lacking(); missing != "" {
		o.block(not+missing, "every node must be there to take the new key; bring it back, or release its machine")
		return false, nil
	}
	secret := &v1alpha1.Secret{}
	if err := o.Client.Get(ctx, client.ObjectKey{Name: members.SecretName(o.c.Name)}, secret); err != nil {
		return false, fmt.Errorf("read keys of cluster %s: %w", o.c.Name, err)
	}
	changed, err := members.PrepareRotation(secret, o.c, wanted, o.Now())
	if err != nil {
		return false, fmt.Errorf("make the new key of cluster %s: %w", o.c.Name, err)
	}
	if changed {
		// Before anything is recorded that needs it.
		if err := o.Client.Update(ctx, secret); err != nil {
			return false, fmt.Errorf("store the new key of cluster %s: %w", o.c.Name, err)
		}
	}
	o.c.Status.BeginRotation(v1alpha1.RotationStatus{Key: wanted.Key, ID: wanted.ID, Stage: v1alpha1.RotationAccept, Since: o.at, StartedAt: o.at, RequestedBy: wanted.RequestedBy})
	o.Log.Info("rotation begins", "cluster", o.c.Name, "key", wanted.Key, "id", wanted.ID, "by", wanted.RequestedBy)
	return true, nil
}

// enter begins a stage of the rotation in hand. When it ends, the Secret has one key less first: who finds the record of the stage before
// with such a Secret goes on from here.
func (o *operation) enter(ctx context.Context, stage v1alpha1.RotationStage) error {
	is := o.c.Status.Rotation
	if stage.Ended() {
		secret := &v1alpha1.Secret{}
		if err := o.Client.Get(ctx, client.ObjectKey{Name: members.SecretName(o.c.Name)}, secret); err != nil {
			return fmt.Errorf("read keys of cluster %s: %w", o.c.Name, err)
		}
		if members.FinishRotation(secret, is) {
			if err := o.Client.Update(ctx, secret); err != nil {
				return fmt.Errorf("store keys of cluster %s: %w", o.c.Name, err)
			}
		}
	}
	o.remember(v1alpha1.ClusterWorkStep{Kind: strings.ToLower(string(is.Stage)), Operation: string(operationRotate),
		Reason: fmt.Sprintf("rotation of %s", is.Key), StartedAt: &is.Since, FinishedAt: new(o.at)})
	o.Log.Info("rotation goes on", "cluster", o.c.Name, "key", is.Key, "stage", stage, "was", is.Stage)
	o.rewriting.forget(o.c.Name)
	next := *is
	next.Stage, next.Since, next.EverywhereAt, next.Message, next.Rewritten, next.Secrets = stage, o.at, nil, "", 0, 0
	o.c.Status.Rotation = &next
	return nil
}

// lacking says of the nodes that do not have what they are to have how many they are, and of the first why; empty when all have it.
func (o *operation) lacking() string {
	lacks, first := 0, ""
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		m, _ := o.Fleet.Get(n.Machine)
		why := ""
		want, problem := o.Clusters.Config(n.Machine)
		switch has := configOf(m, o.c.Name); {
		case m == nil:
			why = "its Machine does not exist any more"
		case m.Status.Phase == v1alpha1.PhaseLost:
			why = "it does not answer"
		case problem != "":
			why = problem
		case n.Hand != nil:
			why = "it is in hand"
		case has == nil || *has != want || !m.Status.Kubernetes.Done:
			why = "it has not taken it yet"
		case !n.Ready:
			why = "its node is not ready"
		}
		if why == "" {
			continue
		}
		if lacks++; first == "" {
			first = fmt.Sprintf("%s: %s", n.Machine, why)
		}
	}
	if lacks == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d nodes have this stage; %s", len(o.c.Status.Nodes)-lacks, len(o.c.Status.Nodes), first)
}

// stageLacks is what a stage still waits for that every node has; empty when nothing. It does what a stage does beside its nodes.
func (o *operation) stageLacks(ctx context.Context, is *v1alpha1.RotationStatus) (string, error) {
	if o.sight.problem != "" {
		return o.sight.problem, nil
	}
	switch made := is.Stage == v1alpha1.RotationSwap || is.Stage == v1alpha1.RotationReturn; {
	case is.Key == v1alpha1.RotateCA && is.Stage == v1alpha1.RotationAccept:
		view, _, _ := o.Clusters.View(o.c.Name)
		known, err := o.sight.api.PodsKnow(ctx, view.Authority)
		if err != nil || known {
			return "", err
		}
		return "pods are not given the new authority yet; the controller manager does that when it has started with it", nil
	case is.Stage == v1alpha1.RotationPublish:
		return o.podsLack(), nil
	case (is.Key == v1alpha1.RotateCA || is.Key == v1alpha1.RotateFrontProxyCA) && (is.Stage == v1alpha1.RotationDrop || is.Stage == v1alpha1.RotationUndo):
		already, err := o.sight.api.TrustOnly(ctx, o.Clusters.Authority(o.c.Name, kube.AuthorityKubernetes), o.Clusters.Authority(o.c.Name, kube.AuthorityFrontProxy))
		if err != nil || already {
			return "", err
		}
		return "extension API servers are told of the authorities that are left", nil
	case is.Key == v1alpha1.RotateServiceAccount && made:
		return o.tokensLack(ctx, is)
	case is.Key == v1alpha1.RotateEncryption && made:
		return o.rewrite(ctx, is)
	}
	return "", nil
}

// podsLack says which of the cluster's own pods have not started with the new authority yet.
func (o *operation) podsLack() string {
	view, _, _ := o.Clusters.View(o.c.Name)
	state := o.apis.state(o.c.Name)
	if state == nil || view.Plan == nil || state.Objects.Digest != kubeapi.Digest(view.Plan.Objects) || len(state.Objects.Errors) > 0 || state.Addons == nil {
		return "the cluster's own pods are not told to start anew yet"
	}
	if waiting := waitingAddons(clusterFacts{api: state}); len(waiting) > 0 {
		return "the cluster's own pods start anew: " + shortened(waiting)
	}
	return ""
}

// tokensLack has tokens signed anew that are kept in Secrets, and waits for the end of those that were signed before.
func (o *operation) tokensLack(ctx context.Context, is *v1alpha1.RotationStatus) (string, error) {
	signer, err := o.Clusters.TokenSigner(o.c.Name)
	if err != nil {
		return "", err
	}
	names, err := o.sight.api.ResignTokens(ctx, signer)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if len(is.Tokens) < maxTokensNamed && !slices.Contains(is.Tokens, name) {
			is.Tokens = append(is.Tokens, name)
		}
	}
	if len(names) > 0 {
		return fmt.Sprintf("tokens of %d Secrets are being signed anew: %s", len(names), someOf(names)), nil
	}
	lifetime := tokenLifetime
	if w := o.c.Spec.Rotation; w != nil && w.ID == is.ID && w.TokenLifetime != nil {
		lifetime = w.TokenLifetime.Duration
	}
	if end := is.EverywhereAt.Add(lifetime); o.Now().Before(end) {
		return fmt.Sprintf("tokens that were signed before end until %s", end.UTC().Format(time.RFC3339)), nil
	}
	return "", nil
}

// rewriteFor is how long one look at a cluster writes Secrets.
const rewriteFor = 10 * time.Second

// rewrite has the API servers encrypt every Secret with the key that they use now. A server that starts begins from the first.
func (o *operation) rewrite(ctx context.Context, is *v1alpha1.RotationStatus) (string, error) {
	from := o.rewriting.at(o.c.Name, members.RotationMark(is))
	if from.done == 0 {
		is.Rewritten, is.Secrets = 0, 0
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	for began := o.Now(); o.Now().Sub(began) < rewriteFor; {
		page, err := o.sight.api.RewriteSecrets(ctx, from.next)
		if err != nil {
			o.rewriting.forget(o.c.Name) // where it was may be known no longer
			return "", err
		}
		from.done, from.next = from.done+page.Done, page.Next
		o.rewriting.set(o.c.Name, from)
		is.Rewritten, is.Secrets = from.done, from.done+page.Left
		if page.Next == "" {
			return "", nil
		}
	}
	return fmt.Sprintf("%d of %d Secrets are written with the key", is.Rewritten, is.Secrets), nil
}

// progress is how far the Secrets of a cluster are rewritten in a stage.
type progress struct {
	mark, next string
	done       int64
}

// progresses of all clusters, in memory: what is written twice does no harm.
type progresses struct {
	mu  sync.Mutex
	all map[string]progress
}

func (p *progresses) at(cluster, mark string) progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	if is := p.all[cluster]; is.mark == mark {
		return is
	}
	return progress{mark: mark}
}

func (p *progresses) set(cluster string, is progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[string]progress{}
	}
	p.all[cluster] = is
}

func (p *progresses) forget(cluster string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, cluster)
}
