package validate

import (
	"strings"
	"testing"
	"time"
)

func TestFields(t *testing.T) {
	good := &Fields{}
	good.Interfaces([]string{"eth0", "eth1"})
	good.Leases("subnets[a]", "", 0)
	good.Leases("subnets[a]", "example.org", time.Hour)
	good.AddAll("subnets[a]", nil)
	if err := good.Err(); err != nil {
		t.Error(err)
	}
	bad := &Fields{}
	bad.Interfaces([]string{"eth0", "", "a/b", "an-interface-name", "eth0"})
	bad.Leases("subnets[a]", "-", time.Nanosecond)
	bad.AddAll("subnets[a]", []Problem{{Field: "cidr", Index: -1, Message: "is missing"}, {Field: "dns", Index: 2, Value: "x", Message: "is wrong"}})
	lines := strings.Split(bad.Err().Error(), "\n")
	for i, want := range []string{"interfaces[1]: \"\" cannot", "interfaces[2]: \"a/b\" cannot", "interfaces[3]: \"an-interface-name\" cannot", "interfaces[4]: \"eth0\" is listed twice",
		"subnets[a].domain: \"-\" ", "subnets[a].leaseTime: 1ns ", "subnets[a].cidr: is missing", "subnets[a].dns[2]: x is wrong"} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Fatalf("problems are\n%s\nwant line %d to begin with %s", strings.Join(lines, "\n"), i, want)
		}
	}
}
