package kubeapi

import "context"

// Runner looks after one cluster's API.
type Runner struct{}

// NewRunner checks the options.
func NewRunner(options Options) (*Runner, error) { return nil, nil }

// Run works until ctx ends. It returns an error only for what no waiting mends.
func (r *Runner) Run(ctx context.Context) error { return nil }

// Update replaces the options. It returns an error and changes nothing where they cannot be used.
func (r *Runner) Update(options Options) error { return nil }
