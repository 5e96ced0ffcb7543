package systemd

import (
	"strings"
	"testing"
)

func TestParseState(t *testing.T) {
	got := parseState([]byte("Result=exit-code\nNRestarts=3\nLoadState=loaded\nActiveState=activating\nSubState=auto-restart\nUnitFileState=enabled\nNeedDaemonReload=yes\n"))
	want := UnitState{Load: "loaded", Active: "activating", Sub: "auto-restart", File: "enabled", Result: "exit-code", Restarts: "3", NeedReload: true}
	if got != want || got.String() != "activating (auto-restart), result exit-code, restarted 3 times" {
		t.Errorf("got %+v, %s", got, got)
	}
}

func TestParseStates(t *testing.T) {
	out := "LoadState=loaded\nActiveState=active\n\nLoadState=not-found\nActiveState=inactive\nResult=\n"
	all, err := parseStates([]byte(out), []string{"b.service", "a.service"})
	if err != nil || len(all) != 2 || all["b.service"].Active != "active" || all["a.service"].Load != "not-found" {
		t.Errorf("got %+v, %v", all, err)
	}
	for _, units := range [][]string{{"a.service"}, {"a.service", "b.service", "c.service"}} {
		if all, err := parseStates([]byte(out), units); err == nil || !strings.Contains(err.Error(), "answered for 2 units") {
			t.Errorf("%d units: got %+v, %v", len(units), all, err)
		}
	}
}
