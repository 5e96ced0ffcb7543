package kubeapi

import (
	"context"
	"strings"
	"sync"
	"time"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"coldrack.dev/internal/cluster/kube"
)

const (
	workers = 4
	// lookAgain is how often requests are judged anew that wait for something.
	lookAgain = 30 * time.Second
	// oneTimeout ends the work on one node or request.
	oneTimeout = 30 * time.Second

	nodeItem      = "node/"
	requestItem   = "request/"
	namespaceItem = "namespace/"
)

// work is what is done while the API answers: it watches nodes, certificate requests, namespaces and operators' bindings in them.
type work struct {
	runner     *Runner
	connection *Connection
	queue      workqueue.TypedRateLimitingInterface[string]
	nodeStore  cache.Store
	csrStore   cache.Store
	// namespaceStore and bindingStore have all namespaces, and the RoleBindings of operators in them.
	namespaceStore, bindingStore cache.Store
	factories                    []informers.SharedInformerFactory
	synced                       []cache.InformerSynced
}

func newWork(r *Runner, connection *Connection) *work {
	w := &work{runner: r, connection: connection,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second))}
	all := informers.NewSharedInformerFactory(connection.client, 0)
	operators := informers.NewSharedInformerFactoryWithOptions(connection.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = "metadata.name=" + kube.GroupOperator
	}))
	w.factories = []informers.SharedInformerFactory{all, operators}
	w.nodeStore = w.watch(all.Core().V1().Nodes().Informer(), nodeItem)
	w.csrStore = w.watch(all.Certificates().V1().CertificateSigningRequests().Informer(), requestItem)
	w.namespaceStore = w.watch(all.Core().V1().Namespaces().Informer(), namespaceItem)
	w.bindingStore = w.watch(operators.Rbac().V1().RoleBindings().Informer(), namespaceItem)
	return w
}

// watch puts the names of what changes into the queue; of what is in a namespace, the name of that.
func (w *work) watch(informer cache.SharedIndexInformer, item string) cache.Store {
	// Neither can fail before the informer has been started.
	_ = informer.SetTransform(keepWhatIsUsed)
	_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		w.runner.log.Debug("watch ended", "cluster", w.connection.target.Cluster, "of", strings.TrimSuffix(item, "/"), "error", err)
	})
	add := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			namespace, _, _ := strings.Cut(key, "/")
			w.queue.Add(item + namespace)
		}
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add, UpdateFunc: func(_, object any) { add(object) }, DeleteFunc: add})
	if err == nil {
		w.synced = append(w.synced, registration.HasSynced)
	}
	return informer.GetStore()
}

// keepWhatIsUsed drops what makes objects large: images of nodes, and who else owns which field.
func keepWhatIsUsed(object any) (any, error) {
	if o, ok := object.(metav1.Object); ok {
		var ours []metav1.ManagedFieldsEntry
		for _, entry := range o.GetManagedFields() {
			if ourFields(entry) {
				ours = append(ours, entry)
			}
		}
		o.SetManagedFields(ours)
	}
	if node, ok := object.(*corev1.Node); ok {
		node.Status.Images = nil
	}
	return object, nil
}

func (w *work) run(ctx context.Context) {
	for _, factory := range w.factories {
		factory.StartWithContext(ctx)
		defer factory.Shutdown()
	}
	defer w.queue.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), w.synced...) {
		return
	}
	w.takeOver()
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for w.next(ctx) {
			}
		})
	}
	group.Go(func() {
		ticker := time.NewTicker(lookAgain)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				w.queue.ShutDown()
				return
			case <-ticker.C:
				w.again()
			}
		}
	})
	group.Wait()
}

// again puts everything into the queue.
func (w *work) again() {
	for _, key := range w.nodeStore.ListKeys() {
		w.queue.Add(nodeItem + key)
	}
	for _, key := range w.csrStore.ListKeys() {
		w.queue.Add(requestItem + key)
	}
	for _, key := range w.namespaceStore.ListKeys() {
		w.queue.Add(namespaceItem + key)
	}
}

// takeOver makes the state what was read now: all nodes at once, or one that is only yet to be looked at would pass for one that
// is missing. What went away while nobody watched is forgotten.
func (w *work) takeOver() {
	w.runner.change(func(s *State) {
		s.Nodes = map[string]NodeState{}
		for _, node := range w.allNodes() {
			s.Nodes[node.Name] = stateOf(node)
		}
		for name := range w.runner.nodeProblems {
			if w.node(name) == nil {
				delete(w.runner.nodeProblems, name)
			}
		}
		for name := range s.Requests {
			if w.request(name) == nil {
				delete(s.Requests, name)
			}
		}
	})
}

// next takes one item from the queue; false ends the worker.
func (w *work) next(ctx context.Context) bool {
	item, shutdown := w.queue.Get()
	if shutdown {
		return false
	}
	defer w.queue.Done(item)
	limited, cancel := context.WithTimeout(ctx, oneTimeout)
	defer cancel()
	var err error
	if name, ok := strings.CutPrefix(item, nodeItem); ok {
		err = w.handleNode(limited, name)
	} else if name, ok := strings.CutPrefix(item, requestItem); ok {
		err = w.handleRequest(limited, name)
	} else if name, ok := strings.CutPrefix(item, namespaceItem); ok {
		err = w.reconcileNamespace(limited, name)
	}
	if err == nil {
		w.queue.Forget(item)
		return true
	}
	if ctx.Err() == nil {
		w.runner.log.Debug("trying again later", "cluster", w.connection.target.Cluster, "item", item, "error", err)
		w.queue.AddRateLimited(item)
	}
	return true
}

func (w *work) handleNode(ctx context.Context, name string) error {
	problem, err := w.reconcileNode(ctx, name)
	// Read again: the cache may have gone on meanwhile.
	node := w.node(name)
	if overtaken(err) {
		return err
	}
	if err != nil && problem == "" {
		problem = err.Error()
	}
	w.runner.change(func(s *State) {
		if node == nil {
			delete(s.Nodes, name)
			delete(w.runner.nodeProblems, name)
			return
		}
		s.Nodes[name] = stateOf(node)
		if problem == "" {
			delete(w.runner.nodeProblems, name)
		} else {
			w.runner.nodeProblems[name] = problem
		}
	})
	if err == nil {
		w.againFor(name)
	}
	return err
}

// againFor judges requests anew that may have waited for a node.
func (w *work) againFor(node string) {
	for _, object := range w.csrStore.List() {
		csr, ok := object.(*certificates.CertificateSigningRequest)
		if ok && len(csr.Status.Conditions) == 0 && csr.Spec.Username == nodeUser+node {
			w.queue.Add(requestItem + csr.Name)
		}
	}
}

func (w *work) handleRequest(ctx context.Context, name string) error {
	state, err := w.reconcileRequest(ctx, name)
	if overtaken(err) {
		return err
	}
	if err != nil && state != nil {
		state.Reason = err.Error()
	}
	w.runner.change(func(s *State) {
		if state == nil {
			delete(s.Requests, name)
			return
		}
		s.Requests[name] = *state
	})
	return err
}

// overtaken is true for a write that failed because somebody else wrote first, which the watch will tell of.
func overtaken(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err)
}

func (w *work) node(name string) *corev1.Node { return stored[corev1.Node](w.nodeStore, name) }

// stored finds an object by its key; nil where there is none.
func stored[T any](store cache.Store, key string) *T {
	object, ok, err := store.GetByKey(key)
	if err != nil || !ok {
		return nil
	}
	typed, _ := object.(*T)
	return typed
}

func (w *work) allNodes() []*corev1.Node {
	var nodes []*corev1.Node
	for _, object := range w.nodeStore.List() {
		if node, ok := object.(*corev1.Node); ok {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

func (w *work) request(name string) *certificates.CertificateSigningRequest {
	return stored[certificates.CertificateSigningRequest](w.csrStore, name)
}
