package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

// hollow is a kubelet that runs static pods as plain programs and only says of other pods that they run.
type hollow struct {
	version string
	name    string
	ips     []string
	labels  map[string]string
	config  kubeletconfig.KubeletConfiguration
	api     *kubernetes.Clientset
	pods    *staticPods
}

// kubelet runs until it is told to end. What it started goes on.
func kubelet(version string, args []string) error {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println("Kubernetes", version)
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	k, kubeconfig, err := readOptions(version, args)
	if err != nil {
		return err
	}
	k.pods = newStaticPods(k.config)
	if err := k.serveHealth(ctx); err != nil {
		return err
	}
	go k.pods.run(ctx)
	// Where this machine is to begin a cluster there is no API yet, and static pods do not wait for it.
	for ctx.Err() == nil {
		err := k.connect(kubeconfig)
		if err == nil {
			err = k.beNode(ctx)
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "node %s: %v\n", k.name, err)
		}
		pause(ctx, time.Second)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func readOptions(version string, args []string) (*hollow, string, error) {
	flags := flag.NewFlagSet("kubelet", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "")
	config := flags.String("config", "", "")
	name := flags.String("hostname-override", "", "")
	ips := flags.String("node-ip", "", "")
	labels := flags.String("node-labels", "", "")
	if err := flags.Parse(args); err != nil {
		return nil, "", err
	}
	k := &hollow{version: version, name: *name, ips: strings.Split(*ips, ","), labels: map[string]string{}}
	for label := range strings.SplitSeq(*labels, ",") {
		if key, value, ok := strings.Cut(label, "="); ok {
			k.labels[key] = value
		}
	}
	b, err := os.ReadFile(*config)
	if err != nil {
		return nil, "", err
	}
	if err := yaml.UnmarshalStrict(b, &k.config); err != nil {
		return nil, "", fmt.Errorf("%s: %w", *config, err)
	}
	if k.config.StaticPodPath == "" || k.config.HealthzPort == nil {
		return nil, "", fmt.Errorf("%s has no staticPodPath or no healthzPort", *config)
	}
	return k, *kubeconfig, nil
}

func (k *hollow) serveHealth(ctx context.Context) error {
	address := net.JoinHostPort(k.config.HealthzBindAddress, fmt.Sprint(*k.config.HealthzPort))
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	go func() { _ = http.Serve(listener, mux) }() // it ends with this process
	return nil
}

// connect makes a client of the kubeconfig as it is now: the node's certificate may have been renewed.
func (k *hollow) connect(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.UserAgent, config.QPS, config.Burst = "kubelet", 50, 100
	k.api, err = kubernetes.NewForConfig(config)
	return err
}

// orDefault is a duration of the configuration, or what a kubelet takes without.
func orDefault(d metav1.Duration, otherwise time.Duration) time.Duration {
	if d.Duration > 0 {
		return d.Duration
	}
	return otherwise
}

// beNode registers the node and keeps it, until something fails for good.
func (k *hollow) beNode(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	node, err := k.register(ctx)
	if err != nil {
		return err
	}
	pods := newNodePods(k, node)
	failed := make(chan error, 3)
	lease := time.Duration(k.config.NodeLeaseDurationSeconds) * time.Second
	if lease == 0 {
		lease = 40 * time.Second
	}
	go func() { failed <- pods.run(ctx) }()
	go func() {
		failed <- each(ctx, lease/4, func(ctx context.Context) error { return k.renew(ctx, node, lease) })
	}()
	status := func(ctx context.Context) error {
		_, err := k.report(ctx)
		return err
	}
	go func() {
		for ctx.Err() == nil {
			if err := k.serve(ctx); err != nil && ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "%v\n", err)
			}
			pause(ctx, time.Second)
		}
	}()
	go func() { failed <- each(ctx, orDefault(k.config.NodeStatusUpdateFrequency, 10*time.Second), status) }()
	err = <-failed
	cancel()
	return err
}

// each calls do again and again. An API that is away is waited for; a node that is gone is not.
func each(ctx context.Context, every time.Duration, do func(context.Context) error) error {
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := do(once)
		cancel()
		switch {
		case errors.Is(err, errNodeGone):
			return err
		case err != nil:
			fmt.Fprintf(os.Stderr, "%v\n", err)
			pause(ctx, min(every, time.Second))
		default:
			pause(ctx, every)
		}
	}
	return nil
}

// ready says whether the machine could run pods, as far as this kubelet can tell.
func (k *hollow) ready() (corev1.ConditionStatus, string, string) {
	switch {
	case !exists(runtimeSocket):
		return corev1.ConditionFalse, "KubeletNotReady", "container runtime is down"
	case !existsAny("/etc/cni/net.d/*.conflist"):
		return corev1.ConditionFalse, "KubeletNotReady", "container runtime network not ready: cni config uninitialized"
	}
	return corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"
}
