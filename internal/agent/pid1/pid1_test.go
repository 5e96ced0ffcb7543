package pid1

import "testing"

func TestOnlyPID1IsInit(t *testing.T) {
	if err := Run(); err == nil {
		t.Error("a process other than PID 1 became init")
	}
}
