// Command coldrack-loadbalancer gives Services of type LoadBalancer their addresses, answers for them on the segment, and tells routers of them. It is the
// only program of the image coldrack.dev/loadbalancer:v1 and runs once on each node that announces, in the node's own network, with the
// capability NET_RAW and nothing else. It goes on without Coldrack's server.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/internal/cluster/loadbalancer/node"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stderr)) }

func run(args []string, getenv func(string) string, stderr io.Writer) int {
	flags := flag.NewFlagSet("coldrack-loadbalancer", flag.ContinueOnError)
	flags.SetOutput(stderr)
	name := flags.String("node", getenv("NODE_NAME"), "name of this node; default $NODE_NAME")
	nodes := flags.String("nodes", "", "labels of the nodes that announce")
	health := flags.String("proxy-health", "", "URL of the node's service proxy that says whether it works; empty: it always does")
	kubeconfig := flags.String("kubeconfig", "", "file to reach the API with; default: as a pod does")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 || *name == "" {
		fmt.Fprintln(stderr, "coldrack-loadbalancer: wants --node or $NODE_NAME, and no arguments")
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	config, err := apiConfig(*kubeconfig)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		options := node.Options{Log: log, API: config, Node: *name, Namespace: "kube-system", Nodes: *nodes}
		if *health != "" {
			options.Healthy = node.ProxyHealth(*health)
		}
		err = node.Run(ctx, options)
	}
	if err != nil {
		fmt.Fprintln(stderr, "coldrack-loadbalancer:", err)
		return exitFailed
	}
	return exitOK
}

func apiConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}
