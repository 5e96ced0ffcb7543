package controlplane

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/audit"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	extensionsoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	"k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/kubernetes/scheme"
	basecompatibility "k8s.io/component-base/compatibility"
)

// startServer runs the embedded API server, over an embedded etcd or an existing one.
func (c *ControlPlane) startServer(ctx context.Context, cfg Config) error {
	// The port comes first: it is what most often fails, and nothing has been touched yet.
	listener := cfg.Listener
	if listener == nil {
		var err error
		if listener, err = listen(ctx, cfg.Address); err != nil {
			return err
		}
	}
	c.address = listener.Addr().String()
	closeListener := func() { listener.Close() }
	defer func() { closeListener() }()

	if err := makeDataDir(cfg.DataDir); err != nil {
		return err
	}
	transport := storagebackend.TransportConfig{
		ServerList: cfg.EtcdEndpoints, TrustedCAFile: cfg.EtcdCAFile,
		CertFile: cfg.EtcdCertFile, KeyFile: cfg.EtcdKeyFile,
	}
	if c.engine == EngineEmbedded {
		endpoint, failed, stop, err := startEtcd(ctx, c.log, cfg.path(etcdDir), cmp.Or(cfg.StoreQuota, DefaultStoreQuota))
		if err != nil {
			return unlessInUse(err)
		}
		c.onStop(stop)
		c.watchEtcd(failed)
		transport = storagebackend.TransportConfig{ServerList: []string{endpoint}}
	}
	client, err := dialEtcd(ctx, transport, cfg.EtcdPrefix)
	if err != nil {
		return noStore(err)
	}
	c.onStop(func() { client.Close() })
	if c.engine == EngineEmbedded {
		c.keepStore(client, transport.ServerList[0])
	}
	c.elect = soleLeader{}
	if c.engine == EngineEtcd {
		c.elect = &etcdElector{client: client, prefix: cfg.EtcdPrefix, identity: serverName(), log: c.log}
	}
	encryption, err := openEncryption(ctx, client, cfg)
	if err != nil {
		return err
	}

	rules := newRules(cfg.Normalize)
	server, err := c.buildServer(cfg, listener, transport, encryption, rules)
	if err != nil {
		return err
	}
	closeListener = func() {} // the server closes it from now on
	if err := server.GenericAPIServer.AddReadyzChecks(auditHealth{c.audit}); err != nil {
		return err
	}
	if c.store != nil {
		if err := server.GenericAPIServer.AddReadyzChecks(c.store); err != nil {
			return err
		}
	}
	c.run(server.GenericAPIServer)

	if err := installCRDs(ctx, c.client); err != nil {
		return noStore(err)
	}
	stop, err := rules.start(ctx, c.client)
	if err != nil {
		return noStore(err)
	}
	c.onStop(stop)
	return nil
}

// ErrStore is an error of what holds the kinds: it does not start, does not answer, or has stopped. The same start may succeed later.
var ErrStore = errors.New("the store is not there")

func noStore(err error) error { return fmt.Errorf("%w: %w", ErrStore, err) }

// unlessInUse is noStore but for a store that another program uses, which is a mistake of whoever started this one.
func unlessInUse(err error) error {
	if errors.Is(err, ErrInUse) {
		return err
	}
	return noStore(err)
}

// listen opens the API's socket, and explains what to do when that fails.
func listen(ctx context.Context, address string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return listener, nil
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(address)
		return nil, fmt.Errorf("listen on %s: port %s is in use; stop the program that holds it "+
			"(ss -ltnp 'sport = :%s' shows it) or choose another API address with --api-address", address, port, port)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: this user may not open the port; choose one above 1023", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this machine has no such address; choose one of its own, or 0.0.0.0 for all", address)
	}
	return nil, fmt.Errorf("listen on %s: %w", address, err)
}

func (c *ControlPlane) watchEtcd(failed <-chan error) {
	go func() {
		select {
		case err, open := <-failed: // closed when etcd stops
			if open {
				c.fail(noStore(fmt.Errorf("the store stopped: %w", err)))
			}
		case <-c.stopped:
		}
	}()
}

// run serves until Stop.
func (c *ControlPlane) run(server *genericapiserver.GenericAPIServer) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	prepared := server.PrepareRun()
	go func() {
		defer close(done)
		err := prepared.RunWithContext(ctx)
		if ctx.Err() == nil {
			c.fail(fmt.Errorf("the API server stopped by itself: %w", err))
		}
	}()
	c.onStop(func() {
		cancel()
		<-done
	})
}

// buildServer assembles the API server and sets c.client.
func (c *ControlPlane) buildServer(cfg Config, listener net.Listener, transport storagebackend.TransportConfig, encryption encryptSecrets, rules *rules) (*extensions.CustomResourceDefinitions, error) {
	config := genericapiserver.NewRecommendedConfig(extensions.Codecs)
	if err := c.secure(cfg, config, listener); err != nil {
		return nil, err
	}

	config.ResourceTransformers = encryption
	etcd := etcdOptions(cfg.EtcdPrefix, transport)
	err := etcd.ApplyTo(&config.Config)
	if err != nil {
		return nil, fmt.Errorf("connect the API server to etcd: %w", err)
	}

	if c.audit = cfg.Audit; c.audit == nil {
		if c.audit, err = audit.Open(AuditOptions(cfg.DataDir, c.log)); err != nil {
			return nil, err
		}
		c.onStop(c.audit.Close)
	}
	c.auditContinue = cfg.AuditContinue
	config.AuditBackend, config.AuditPolicyRuleEvaluator = newRecorder(c.audit, c.notRecorded), newPolicyEvaluator()

	config.EffectiveVersion = effectiveVersion{compatibility.DefaultBuildEffectiveVersion(), cfg.Version}
	config.AdmissionControl = rules
	plane := c
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		api = onlyJSON(api, c.Serializer)
		if !plane.auditContinue {
			api = plane.onlyRecorded(api, c.Serializer)
		}
		api = genericapiserver.DefaultBuildHandlerChain(api, c)
		if cfg.Front != nil {
			api = cfg.Front(api)
		}
		return api
	}
	// What is served beside the API, such as an upload or a log that is followed, takes as long as it takes;
	// the API's own requests are cut off after a minute.
	ours := config.LongRunningFunc
	config.LongRunningFunc = func(r *http.Request, info *apirequest.RequestInfo) bool {
		return isBeside(cfg.Handlers, r.URL.Path) || ours(r, info)
	}
	config.ExternalAddress = listener.Addr().String()
	config.EnableIndex = false
	config.EnableProfiling = false
	config.EnableMetrics = true
	config.MaxRequestBodyBytes = maxObject
	namer := openapinamer.NewDefinitionNamer(extensions.Scheme, scheme.Scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIConfig.Info.Title, config.OpenAPIV3Config.Info.Title = "Coldrack", "Coldrack"
	config.MergedResourceConfig = extensions.DefaultAPIResourceConfigSource()

	completed := (&extensions.Config{
		GenericConfig: config,
		ExtraConfig: extensions.ExtraConfig{
			CRDRESTOptionsGetter: extensionsoptions.NewCRDRESTOptionsGetter(*etcd, config.ResourceTransformers, config.StorageObjectCountTracker),
			MasterCount:          1,
			AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, config.LoopbackClientConfig, config.TracerProvider),
		},
	}).Complete()
	// Completing turns this off, because in Kubernetes an aggregator in front serves the list of groups. Here
	// nothing stands in front, and without the list kubectl knows no kind.
	completed.GenericConfig.EnableDiscovery = true

	server, err := completed.New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, fmt.Errorf("assemble the API server: %w", err)
	}
	// The CRD machinery fills the aggregated list by itself, the legacy one it leaves to the aggregator.
	version := metav1.GroupVersionForDiscovery{GroupVersion: v1alpha1.GroupVersion.String(), Version: v1alpha1.Version}
	server.GenericAPIServer.DiscoveryGroupManager.AddGroup(metav1.APIGroup{
		Name: v1alpha1.Group, Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version,
	})
	serveCoreDiscovery(server.GenericAPIServer)
	if err := serveSelfReviews(server.GenericAPIServer); err != nil {
		return nil, err
	}
	stopping, stop := context.WithCancel(context.Background())
	if err := server.GenericAPIServer.AddPreShutdownHook("end-handlers", func() error { stop(); return nil }); err != nil {
		stop()
		return nil, err
	}
	for path, handler := range cfg.Handlers {
		mux := server.GenericAPIServer.Handler.NonGoRestfulMux
		handler = endWith(stopping, handler)
		if strings.HasSuffix(path, "/") {
			mux.HandlePrefix(path, handler)
		} else {
			mux.Handle(path, handler)
		}
	}
	c.client = config.LoopbackClientConfig
	return server, nil
}

// endWith ends the requests of a handler when the server stops, which would otherwise wait a minute for
// somebody who follows a log.
func endWith(stopping context.Context, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(stopping, func() {
			cancel()
			// A handler that reads an upload does not look at its context.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now())
		})()
		handler.ServeHTTP(w, r.WithContext(ctx))
	})
}

// isBeside tells whether a path belongs to one of the handlers beside the API.
func isBeside(handlers map[string]http.Handler, path string) bool {
	for pattern := range handlers {
		if path == pattern || strings.HasSuffix(pattern, "/") && strings.HasPrefix(path, pattern) {
			return true
		}
	}
	return false
}

// onlyJSON refuses bodies in protobuf, in which kinds that are defined by CRDs cannot be written: k8s.io/apiextensions-apiserver
// offers it all the same and panics (as of v0.36).
func onlyJSON(api http.Handler, serializer runtime.NegotiatedSerializer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), runtime.ContentTypeProtobuf) && strings.HasPrefix(r.URL.Path, "/apis/"+v1alpha1.Group+"/") {
			err := negotiation.NewUnsupportedMediaTypeError([]string{runtime.ContentTypeJSON, runtime.ContentTypeYAML})
			responsewriters.ErrorNegotiated(err, serializer, v1alpha1.GroupVersion, w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

func etcdOptions(prefix string, transport storagebackend.TransportConfig) *options.EtcdOptions {
	storage := storagebackend.NewDefaultConfig(prefix, extensions.Codecs.LegacyCodec(apiextensionsv1.SchemeGroupVersion))
	storage.EncodeVersioner = runtime.NewMultiGroupVersioner(apiextensionsv1.SchemeGroupVersion, schema.GroupKind{Group: apiextensionsv1.GroupName})
	storage.Transport = transport
	etcd := options.NewEtcdOptions(storage)
	// Nothing here collects garbage, so a delete in the foreground would wait for it for ever.
	etcd.EnableGarbageCollection = false
	// The watch cache keeps every version of the last minute as decoded maps, ten times the size of their JSON: a thousand
	// machines that install would take half a gigabyte. The few watchers that there are follow etcd itself.
	etcd.EnableWatchCache = false
	return etcd
}

// secure sets who is served, over what, and who may do what.
func (c *ControlPlane) secure(cfg Config, config *genericapiserver.RecommendedConfig, listener net.Listener) error {
	serving, err := newServingCert(cfg.ServingCert, cfg.ServingKey)
	if err != nil {
		return err
	}
	c.serving = serving
	clientCA, err := dynamiccertificates.NewStaticCAContent("client-ca", cfg.ClientCAs)
	if err != nil {
		return fmt.Errorf("client CA: %w", err)
	}
	loopbackCert, loopbackKey, err := loopbackCertificate()
	if err != nil {
		return fmt.Errorf("certificate for ourselves: %w", err)
	}
	loopback, err := dynamiccertificates.NewStaticSNICertKeyContent("loopback", loopbackCert, loopbackKey, genericapiserver.LoopbackClientServerNameOverride)
	if err != nil {
		return fmt.Errorf("certificate for ourselves: %w", err)
	}
	config.SecureServing = &genericapiserver.SecureServingInfo{
		Listener: listener,
		Cert:     serving,
		SNICerts: []dynamiccertificates.SNICertKeyContentProvider{loopback},
		ClientCA: clientCA,
		// Informers of all kinds share one connection; each watch is a stream.
		HTTP2MaxStreamsPerConnection: 1000,
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	config.LoopbackClientConfig, err = config.SecureServing.NewLoopbackClientConfig(hex.EncodeToString(secret), loopbackCert)
	if err != nil {
		return fmt.Errorf("client for ourselves: %w", err)
	}

	var health []apiserver.AnonymousAuthCondition
	for _, path := range healthPaths {
		health = append(health, apiserver.AnonymousAuthCondition{Path: path})
	}
	// A wrong credential fails; only a request without one is anonymous.
	tokens := OpenTokens(TokensPath(cfg.DataDir))
	config.Authentication.Authenticator = union.NewFailOnError(
		group.NewAuthenticatedGroupAdder(union.NewFailOnError(
			vouched{tokens: tokens, now: time.Now},
			union.New(x509request.NewDynamic(clientCA.VerifyOptions, certificateHolder), bearertoken.New(tokens)),
		)),
		anonymous.NewAuthenticator(health),
	)
	config.Authorization.Authorizer = authorizer.AuthorizerFunc(authorize)
	return nil
}

// loopbackCertificate is what the server shows to clients inside this process, which trust nothing else.
func loopbackCertificate() (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	name := genericapiserver.LoopbackClientServerNameOverride
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		// Valid for longer than any process lives, also when the clock is set after the start.
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(30, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// effectiveVersion is the version of the API machinery, by which kubectl judges whether it fits, with our own
// behind it.
type effectiveVersion struct {
	basecompatibility.EffectiveVersion
	own string
}

func (v effectiveVersion) Info() *apiversion.Info {
	info := *v.EffectiveVersion.Info()
	machinery := v.BinaryVersion()
	info.GitVersion = fmt.Sprintf("v%d.%d.%d+coldrack", machinery.Major(), machinery.Minor(), machinery.Patch())
	if own := strings.TrimPrefix(v.own, "v"); own != "" {
		info.GitVersion += "." + strings.ReplaceAll(own, "+", ".")
	}
	return &info
}

// makeDataDir makes the data directory, and explains what to do when that fails.
func makeDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w; choose one that this user may write to", err)
	}
	probe, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return fmt.Errorf("the data directory %s cannot be written to: %w; run as its owner or choose another one", dir, err)
	}
	probe.Close()
	return os.Remove(probe.Name())
}
