package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// terminationLog is the file whose content Kubernetes puts into a pod's status when the container has ended. It takes
	// 4096 bytes.
	terminationLog = "/dev/termination-log"
	maxReport      = 4096
	// attempt and pause are the time for one try of a target and between two.
	attempt = 4 * time.Second
	pause   = 500 * time.Millisecond
	// maxWithin bounds a report's time.
	maxWithin = 10 * time.Minute
)

// report tries each target until it is good or the time is up, and returns what was found last. Where a service is new,
// not every node knows it yet.
func report(ctx context.Context, within time.Duration, targets []string) []Result {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	results := make([]Result, len(targets))
	var all sync.WaitGroup
	for i, target := range targets {
		all.Go(func() {
			for {
				// An attempt has its whole time, also the last one: its error is the answer.
				results[i] = check(context.WithoutCancel(ctx), checkRequest{target: target, timeout: attempt})
				results[i].Body = ""
				if results[i].OK {
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
			}
		})
	}
	all.Wait()
	return results
}

// encodeReport shortens errors until the report fits.
func encodeReport(results []Result) ([]byte, error) {
	for most := maxReport; ; most /= 2 {
		for i := range results {
			results[i].Error = results[i].Error[:min(most, len(results[i].Error))]
		}
		text, err := json.Marshal(results)
		if err != nil || len(text) <= maxReport {
			return text, err
		}
		if most == 0 {
			return nil, fmt.Errorf("a report of %d targets does not fit into %d bytes", len(results), maxReport)
		}
	}
}

// writeReport leaves a report where Kubernetes reads it. Nothing needs to reach this pod for that.
func writeReport(ctx context.Context, within time.Duration, targets []string) error {
	text, err := encodeReport(report(ctx, within, targets))
	if err != nil {
		return err
	}
	path := os.Getenv("COLDRACK_PROBE_REPORT")
	if path == "" {
		path = terminationLog
	}
	return os.WriteFile(path, text, 0o644)
}
