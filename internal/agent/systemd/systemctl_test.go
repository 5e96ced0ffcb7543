package systemd

import "testing"

func TestParseState(t *testing.T) {
	got := parseState([]byte("Result=exit-code\nNRestarts=3\nLoadState=loaded\nActiveState=activating\nSubState=auto-restart\nUnitFileState=enabled\nNeedDaemonReload=yes\n"))
	want := UnitState{Load: "loaded", Active: "activating", Sub: "auto-restart", File: "enabled", Result: "exit-code", Restarts: "3", NeedReload: true}
	if got != want || got.String() != "activating (auto-restart), result exit-code, restarted 3 times" {
		t.Errorf("got %+v, %s", got, got)
	}
}
