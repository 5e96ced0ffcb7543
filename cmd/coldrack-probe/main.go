// Command coldrack-probe looks at a cluster's network from inside a pod. It is the only program of the image
// coldrack.dev/probe:v2, with which `coldrack cluster verify` finds out whether pods reach each other, services
// and names, whether a node's own network reaches services, and whether API servers reach what they call.
//
// `coldrack-probe serve` listens on port 8080 (COLDRACK_PROBE_LISTEN) and answers
//
//	GET /healthz                            "ok"
//	GET /whoami                             Identity as JSON
//	GET /check?target=TARGET&timeout=5s     Result as JSON, with status 200 whether the check went well or not
//
// A target is http://…, https://… (fetched; any status of 200 to 299 is good; redirects are not followed),
// dns:NAME (looked up with the pod's resolver, search domains included) or tcp://HOST:PORT (connected to).
// &insecure=true does not verify an https server's certificate, &body=TEXT also asks that the answer's
// beginning contains TEXT. timeout may be up to 30s. A request that makes no sense is answered with status
// 400 and a Result that says why.
//
// `coldrack-probe check TARGET [timeout]` does the same once, for kubectl exec, prints the Result and ends with 0
// when it is good, 1 when it is not.
//
// `coldrack-probe report WITHIN TARGET...` tries each target until it is good or WITHIN (such as 15s) has passed, writes the
// Results to /dev/termination-log (COLDRACK_PROBE_REPORT) as a JSON list and ends with 0. It listens nowhere, so it can run in a
// node's own network.
//
// With a certificate and key as PEM in COLDRACK_PROBE_CERTIFICATE and COLDRACK_PROBE_KEY, serve also listens on port 8443
// (COLDRACK_PROBE_LISTEN_TLS) for API servers, and answers
//
//	POST /mutate                              an AdmissionReview: the object gets data that name this node
//	GET  /apis/verify.coldrack.dev/v1         an APIResourceList without resources
//	GET  /apis/verify.coldrack.dev/v1/whoami  Identity, and the user that the API server names
//
// The program needs nothing: no user, no file, no capability. Port 8080 asks whatever it is told to, so it must
// not be reachable for longer than a verification takes.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

const usage = `coldrack-probe looks at a cluster's network from inside a pod.

  coldrack-probe serve                    answer checks on :8080
  coldrack-probe check TARGET [TIMEOUT]   check http(s)://…, dns:NAME or tcp://HOST:PORT once
  coldrack-probe report WITHIN TARGET...  try them until they are good, and leave a report for the pod's status
`

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case len(args) == 1 && args[0] == "serve":
		listening := func(address net.Addr) { fmt.Fprintln(stderr, "coldrack-probe: listening on", address) }
		endpoints, err := endpointsOf(os.Getenv, identityOf(os.Getenv))
		if err == nil {
			err = serve(ctx, endpoints, listening)
		}
		return ended(err, stderr)
	case len(args) >= 3 && args[0] == "report":
		within, err := parseWithin(args[1])
		for _, target := range args[2:] {
			if err == nil {
				_, err = parseTarget(target)
			}
		}
		if err != nil {
			fmt.Fprintln(stderr, "coldrack-probe:", err)
			return exitUsage
		}
		return ended(writeReport(ctx, within, args[2:]), stderr)
	case (len(args) == 2 || len(args) == 3) && args[0] == "check":
		request := checkRequest{target: args[1], timeout: defaultTimeout}
		if len(args) == 3 {
			timeout, err := parseTimeout(args[2])
			if err != nil {
				fmt.Fprintln(stderr, "coldrack-probe:", err)
				return exitUsage
			}
			request.timeout = timeout
		}
		result := check(ctx, request)
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(result); err != nil || !result.OK {
			return exitFailed
		}
		return exitOK
	case len(args) == 1 && (args[0] == "help" || args[0] == "-h" || args[0] == "--help"):
		fmt.Fprint(stdout, usage)
		return exitOK
	}
	fmt.Fprint(stderr, usage)
	return exitUsage
}

func ended(err error, stderr io.Writer) int {
	if err != nil {
		fmt.Fprintln(stderr, "coldrack-probe:", err)
		return exitFailed
	}
	return exitOK
}

// endpoint is an address with what answers there; certificates is nil for plain HTTP.
type endpoint struct {
	address      string
	handler      http.Handler
	certificates []tls.Certificate
}

// endpointsOf are for checks and, where there is a certificate, for API servers.
func endpointsOf(getenv func(string) string, who Identity) ([]endpoint, error) {
	or := func(name, otherwise string) string {
		if value := getenv(name); value != "" {
			return value
		}
		return otherwise
	}
	endpoints := []endpoint{{address: or("COLDRACK_PROBE_LISTEN", ":8080"), handler: handler(who)}}
	certificate, key := getenv("COLDRACK_PROBE_CERTIFICATE"), getenv("COLDRACK_PROBE_KEY")
	if certificate == "" && key == "" {
		return endpoints, nil
	}
	pair, err := tls.X509KeyPair([]byte(certificate), []byte(key))
	if err != nil {
		return nil, fmt.Errorf("COLDRACK_PROBE_CERTIFICATE and COLDRACK_PROBE_KEY: %w", err)
	}
	return append(endpoints, endpoint{or("COLDRACK_PROBE_LISTEN_TLS", ":8443"), callbacks(who), []tls.Certificate{pair}}), nil
}

// Identity says which pod answers. The pod's manifest gives it by the downward API.
type Identity struct {
	Pod       string   `json:"pod,omitempty"`       // POD_NAME
	Namespace string   `json:"namespace,omitempty"` // POD_NAMESPACE
	Node      string   `json:"node,omitempty"`      // NODE_NAME
	Addresses []string `json:"addresses,omitempty"` // of the pod's interfaces, without loopback
}

func identityOf(getenv func(string) string) Identity {
	who := Identity{Pod: getenv("POD_NAME"), Namespace: getenv("POD_NAMESPACE"), Node: getenv("NODE_NAME")}
	if who.Pod == "" {
		who.Pod, _ = os.Hostname()
	}
	// A pod without any address still answers on loopback; that there is none is then what it tells.
	all, _ := net.InterfaceAddrs()
	for _, address := range all {
		if prefix, ok := address.(*net.IPNet); ok && prefix.IP.IsGlobalUnicast() {
			who.Addresses = append(who.Addresses, prefix.IP.String())
		}
	}
	return who
}

// serve answers until ctx ends or one of the endpoints fails. It tells listening where, as soon as it can be asked.
func serve(ctx context.Context, endpoints []endpoint, listening func(net.Addr)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(endpoints))
	var all sync.WaitGroup
	defer all.Wait()
	for _, e := range endpoints {
		var config net.ListenConfig
		listener, err := config.Listen(ctx, "tcp", e.address)
		if err != nil {
			cancel()
			return err
		}
		listening(listener.Addr())
		if e.certificates != nil {
			listener = tls.NewListener(listener, &tls.Config{Certificates: e.certificates})
		}
		server := &http.Server{Handler: e.handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
		context.AfterFunc(ctx, func() { _ = server.Close() })
		all.Go(func() {
			defer cancel()
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	<-ctx.Done()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// maxChecks at once; a check holds a socket and a little memory.
const maxChecks = 64

func handler(who Identity) http.Handler {
	running := make(chan struct{}, maxChecks)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, _ *http.Request) { respond(w, http.StatusOK, who) })
	mux.HandleFunc("GET /check", func(w http.ResponseWriter, r *http.Request) {
		request, err := parseCheck(r.URL.Query())
		if err != nil {
			respond(w, http.StatusBadRequest, Result{Target: request.target, Error: err.Error(), From: who})
			return
		}
		select {
		case running <- struct{}{}:
			defer func() { <-running }()
		default:
			respond(w, http.StatusServiceUnavailable, Result{Target: request.target, Error: fmt.Sprintf("%d checks are running already", maxChecks), From: who})
			return
		}
		result := check(r.Context(), request)
		result.From = who
		respond(w, http.StatusOK, result)
	})
	return mux
}

func respond(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // a client that went away needs no answer
}
