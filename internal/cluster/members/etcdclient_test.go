package members

import (
	"crypto/x509"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
)

func TestTheServerIsAClientOfEtcdAlone(t *testing.T) {
	set := newSet()
	if _, err := set.EtcdClient("lab", time.Hour); err == nil || set.EtcdAuthority("lab") != nil {
		t.Error("a certificate for a cluster that is not there")
	}
	r := record(t, rack(t, "lab", v1alpha1.TopologyLaptop, 0))
	set.Put(r)
	certificate, err := set.EtcdClient("lab", time.Hour)
	check(t, err)
	view, _, _ := set.View("lab")
	for _, test := range []struct {
		authority []byte
		fits      bool
	}{{set.EtcdAuthority("lab"), true}, {view.Authority, false}} {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(test.authority) {
			t.Fatal("no authority")
		}
		_, err := certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: set.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if (err == nil) != test.fits {
			t.Errorf("verified by its authority: %t, %v", test.fits, err)
		}
	}
}
