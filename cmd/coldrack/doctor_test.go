package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"

	"coldrack.dev/internal/server/daemon"
)

// What doctor expects to be open is what the table of docs/security.md says.
func TestDoctorKnowsThePortsOfTheSecurityTable(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\|((?: ?\d+/(?:udp|tcp),?)+) \|`).FindAllStringSubmatch(string(text), -1) {
		for _, port := range regexp.MustCompile(`\d+/(?:udp|tcp)`).FindAllString(row[1], -1) {
			documented[port] = true
		}
	}
	known := map[string]bool{}
	for _, p := range serverPorts(daemon.DefaultConfig()) {
		known[p.Name()] = true
	}
	if !maps.Equal(documented, known) {
		t.Errorf("docs/security.md has %v, doctor %v", slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(known)))
	}
}
