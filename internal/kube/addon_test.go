package kube

import (
	"strings"
	"testing"
)

func TestCorefile(t *testing.T) {
	for _, noNameservers := range []bool{false, true} {
		config := corefile("rack.example", noNameservers)
		if strings.Contains(config, "$") || !strings.Contains(config, "kubernetes rack.example in-addr.arpa ip6.arpa {") {
			t.Errorf("without nameservers %v: the cluster's domain is not filled in:\n%s", noNameservers, config)
		}
		if forwards := strings.Contains(config, "forward . /etc/resolv.conf"); forwards == noNameservers {
			t.Errorf("without nameservers %v: forwards %v", noNameservers, forwards)
		}
		// What CoreDNS knows (RFC 1035, section 4.1.1, by its usual name).
		if answers := strings.Contains(config, "rcode NXDOMAIN\n"); answers != noNameservers {
			t.Errorf("without nameservers %v: says itself that names do not exist %v:\n%s", noNameservers, answers, config)
		}
	}
}
