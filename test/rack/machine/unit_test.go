package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAUnitIsReadWithItsDropIns(t *testing.T) {
	u := &unit{name: "kubelet.service"}
	for _, text := range []string{
		"[Unit]\nAfter=network-online.target containerd.service\nStartLimitIntervalSec=0\n\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\nRestartSec=2\n",
		"[Service]\nEnvironment=\"CONFIG=--config=/var/lib/kubelet/config.yaml\"\nExecStartPre=-/usr/bin/systemctl set-property --runtime system.slice CPUWeight=20\n" +
			"ExecStart=\nExecStart=/usr/bin/kubelet $CONFIG \\\n  $NONE --v=2\n",
	} {
		u.read(text)
	}
	if !u.restart || u.restartAfter != 2*time.Second || !u.unlimited || u.oneshot || !slices.Contains(u.after, "containerd.service") {
		t.Errorf("read %+v", u)
	}
	if len(u.exec) != 1 || len(u.pre) != 1 {
		t.Fatalf("ExecStart %q, ExecStartPre %q", u.exec, u.pre)
	}
	command, tolerant := words(u.exec[0], u.environment)
	if got := strings.Join(command, " "); got != "/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml --v=2" || tolerant {
		t.Errorf("the command is %q, tolerant: %v", got, tolerant)
	}
	if _, tolerant := words(u.pre[0], nil); !tolerant {
		t.Error("a failure of what begins with a hyphen matters")
	}
}

func TestAVariableBecomesAsManyWordsAsItHas(t *testing.T) {
	command, _ := words("x ${A} $B $A", []string{"A=old", "A=1 2", "B="})
	if want := []string{"x", "1", "2", "1", "2"}; !slices.Equal(command, want) {
		t.Errorf("got %q, want %q", command, want)
	}
}
