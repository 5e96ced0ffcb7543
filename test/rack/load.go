package rack

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/test/netns"
)

const (
	// loadPause is between two requests of one client.
	loadPause = 20 * time.Millisecond
	// loadLimit is for the answer to one request. An API server gives up a request ten seconds after it asked a member of etcd whose machine
	// has lost its power, and finds that out for each kind of object on its own, with what it is asked next.
	loadLimit = 15 * time.Second
	// mostTold is how many failures of one client are logged.
	mostTold = 30
)

// Loss is what a client has seen.
type Loss struct {
	// Requests that were made, reads and writes; Retried are those of them that were answered only when they were made once more,
	// Lost those that were not answered then either.
	Requests, Retried, Lost int
	// LongestGap is the longest time between two answers.
	LongestGap time.Duration
	// Last error that was seen, if any.
	Last error
}

func (l Loss) String() string {
	text := fmt.Sprintf("%d requests, %d retried, %d lost, longest gap %s", l.Requests, l.Retried, l.Lost, l.LongestGap.Round(time.Millisecond))
	if l.Last != nil {
		text += fmt.Sprintf(", last error: %v", l.Last)
	}
	return text
}

// Client writes to the API and reads back all the time, one request after the other, each made once more when it fails.
type Client struct {
	r    *Rack
	name string
	host string
	from *netns.NS
	api  atomic.Pointer[kubernetes.Clientset]
	stop context.CancelFunc
	done chan struct{}
	// wrong is what the API said that cannot be true.
	wrong error
	told  int // by run alone

	mu       sync.Mutex
	loss     Loss
	answered time.Time
}

// ClientAtBalancer runs on a machine and reaches the API as the node's own programs do, through its local balancer.
func (r *Rack) ClientAtBalancer(machine string) *Client {
	r.t.Helper()
	m := r.Machine(machine)
	return r.startClient("at-"+machine, "https://"+balancerAddress, m.ns)
}

// ClientAtVirtualIP runs at the desk.
func (r *Rack) ClientAtVirtualIP() *Client {
	r.t.Helper()
	return r.startClient("at-desk", "https://"+virtualIP+":"+apiPort, r.desk)
}

func (r *Rack) startClient(name, host string, from *netns.NS) *Client {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	c := &Client{r: r, name: name, host: host, from: from, stop: stop, done: make(chan struct{}), answered: time.Now()}
	c.Reconnect()
	r.t.Cleanup(func() { c.Stop() })
	go func() {
		defer close(c.done)
		c.wrong = c.run(ctx)
	}()
	// It counts from its first answer on.
	r.Await("client "+name, func() (bool, string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.loss.Requests > c.loss.Lost {
			c.loss = Loss{}
			return true, "answered"
		}
		return false, fmt.Sprint(c.loss.Last)
	})
	return c
}

// Reconnect has the client go on with the kubeconfig that there is now.
func (c *Client) Reconnect() {
	c.r.t.Helper()
	config, err := c.r.restConfig(c.host, c.from)
	if err != nil {
		c.r.t.Fatal(err)
	}
	config.Timeout = loadLimit
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		c.r.t.Fatal(err)
	}
	c.api.Store(api)
}

// restConfig is an administrator's way to the API from a namespace; without a host it is the desk's.
func (r *Rack) restConfig(host string, from *netns.NS) (*rest.Config, error) {
	file, err := r.kubeconfig()
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return nil, err
	}
	config.Dial, config.QPS = dial(from), -1
	if host != "" {
		config.Host = host
	}
	return config, nil
}

// run counts up a number in a ConfigMap until ctx ends. What was acknowledged must be there at the next look.
func (c *Client) run(ctx context.Context) error {
	maps := func() typedcorev1.ConfigMapInterface {
		return c.api.Load().CoreV1().ConfigMaps(metav1.NamespaceDefault)
	}
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: c.name}}
	for written := 0; ctx.Err() == nil; pause(ctx, loadPause) {
		read := &corev1.ConfigMap{}
		ok := c.request(ctx, func(ctx context.Context) (err error) {
			read, err = maps().Get(ctx, c.name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) && written == 0 {
				read, err = maps().Create(ctx, object, metav1.CreateOptions{})
			}
			return err
		})
		if !ok {
			continue
		}
		is, _ := strconv.Atoi(read.Data["n"])
		if is < written {
			return fmt.Errorf("client %s: the API acknowledged %d, and has %d", c.name, written, is)
		}
		read.Data = map[string]string{"n": strconv.Itoa(is + 1)}
		if c.request(ctx, func(ctx context.Context) error {
			_, err := maps().Update(ctx, read, metav1.UpdateOptions{})
			if apierrors.IsConflict(err) {
				return nil // the first try had been written, and its answer was lost
			}
			return err
		}) {
			written = is + 1
		}
	}
	return nil
}

// request makes one, and once more if need be.
func (c *Client) request(ctx context.Context, do func(context.Context) error) bool {
	err := do(ctx)
	again := err != nil && ctx.Err() == nil
	if again {
		first := err
		c.tell("was not answered", first)
		if err = do(ctx); err != nil {
			c.tell("was not answered the second time either", err)
			err = errors.Join(first, err)
		}
	}
	if ctx.Err() != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loss.Requests++
	now := time.Now()
	if err != nil {
		c.loss.Lost++
		c.loss.Last = err
		return false
	}
	if again {
		c.loss.Retried++
	}
	c.loss.LongestGap = max(c.loss.LongestGap, now.Sub(c.answered))
	c.answered = now
	return true
}

// tell logs that a request failed, a bounded number of times.
func (c *Client) tell(what string, err error) {
	if c.told++; c.told < mostTold {
		c.r.t.Logf("%5.1fs client %s: a request %s: %v", time.Since(c.r.began).Seconds(), c.name, what, err)
	}
}

// Loss so far.
func (c *Client) Loss() Loss {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loss
}

// AwaitAnswers waits until the client has had so many more answers.
func (c *Client) AwaitAnswers(n int) {
	c.r.t.Helper()
	answers := func() int {
		l := c.Loss()
		return l.Requests - l.Lost
	}
	goal := answers() + n
	c.r.Await("client "+c.name+" is answered", func() (bool, string) { return answers() >= goal, "" })
}

// Stop ends the client and returns what it has seen. It fails the test when something that was acknowledged was gone
// later.
func (c *Client) Stop() Loss {
	c.stop()
	<-c.done
	if c.wrong != nil {
		c.r.t.Error(c.wrong)
	}
	return c.Loss()
}
