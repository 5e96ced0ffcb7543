package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/follow"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) planCommand() *cobra.Command {
	var (
		files   []string
		output  string
		details bool
	)
	cmd := &cobra.Command{
		Use:   "plan -f FILE|FOLDER|-",
		Short: "Show what applying a cluster would do, before anything is done",
		Long: `Show what applying clusters and their groups would do, machine by machine: which machines they get and
why, which are installed first, certificates, changes to files, the order of steps, what would be interrupted, and
what is missing in the imported bundles. Machines, Subnets and Profiles in the files are taken into account. Nothing is changed,
and no secret is shown.

Exit codes: 0 nothing would change, 6 something would, 5 the server would refuse it.`,
		Example: `  coldrack plan -f lab.yaml
  coldrack plan -f lab.yaml --details
  coldrack plan -f lab.yaml -o json | jq '.clusters[].changes.nodes[].disruptions'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return exit.Usagef("name what to plan with -f FILE, -f FOLDER or -f -")
			}
			documents, err := a.readManifests(files)
			if err != nil {
				return err
			}
			response, err := a.askPlan(cmd.Context(), documents, details)
			if err != nil {
				return err
			}
			plan := cli.Plan{Previews: response.Clusters, Details: details}
			if done, err := a.printStructured(output, response); err != nil {
				return err
			} else if !done {
				fmt.Fprint(a.out, cli.RenderPlan(plan))
			}
			return planOutcome(plan)
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder (all of its .yaml, .yml and .json files) or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&details, "details", false, "also show contents of new files, what certificates say, and the reason of each step")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// planOutcome is the exit code of a plan that was printed.
func planOutcome(plan cli.Plan) error {
	for _, p := range plan.Previews {
		if len(p.Invalid) > 0 {
			return &exit.Silent{Code: exit.Refused}
		}
	}
	if plan.Changes() {
		return &exit.Silent{Code: exit.Changes}
	}
	return nil
}

// isPlanned is true for kinds that a plan depends on.
func isPlanned(d *manifest.Document) bool {
	if d.Object.GroupVersionKind().GroupVersion() != v1alpha1.GroupVersion {
		return false
	}
	switch d.Object.GetKind() {
	case "Cluster", "MachineGroup", "Machine", "Subnet", "Profile":
		return true
	}
	return false
}

// isCluster is true for kinds that a plan is about.
func isCluster(d *manifest.Document) bool {
	return isPlanned(d) && (d.Object.GetKind() == "Cluster" || d.Object.GetKind() == "MachineGroup")
}

// askPlan has the server plan what the documents say. What it would refuse is an error with the line of the file.
func (a *app) askPlan(ctx context.Context, documents []*manifest.Document, details bool) (*peoplewire.PlanResponse, error) {
	ask := peoplewire.PlanRequest{Details: details}
	var sent []*manifest.Document
	clusters := false
	for _, d := range documents {
		if !isPlanned(d) {
			continue
		}
		body, err := objects.JSON(d.Object)
		if err != nil {
			return nil, err
		}
		ask.Objects = append(ask.Objects, body)
		sent = append(sent, d)
		clusters = clusters || isCluster(d) || d.Object.GetKind() == "Profile"
	}
	if !clusters {
		return nil, exit.Usagef("there is no Cluster, no MachineGroup and no Profile in these files; `coldrack apply --dry-run` checks other kinds")
	}
	var response peoplewire.PlanResponse
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	if err := request.Post(ctx, config, "plan", ask, &response, peoplewire.PathPlan); err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range response.Refused {
		if r.Object >= 0 && r.Object < len(sent) {
			errs = append(errs, explainFor(sent[r.Object], &apierrors.StatusError{ErrStatus: r.Status}))
		}
	}
	if len(errs) > 0 {
		return nil, &exit.Error{Code: exit.Refused, Err: errors.Join(errs...)}
	}
	return &response, nil
}

func (a *app) clusterApplyCommand() *cobra.Command {
	var (
		files               []string
		yes, wait, force    bool
		details, incomplete bool
		timeout             time.Duration
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE|FOLDER|-",
		Short: "Show a cluster's plan, ask for confirmation, and apply it",
		Long: `Show what applying the files would do, ask whether that is meant, and apply them. With --wait, follow the clusters
until they are Ready.`,
		Example: `  coldrack cluster apply -f lab.yaml --yes --wait --timeout 30m`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if len(files) == 0 {
				return exit.Usagef("name what to apply with -f FILE, -f FOLDER or -f -")
			}
			documents, err := a.readManifests(files)
			if err != nil {
				return err
			}
			response, err := a.askPlan(ctx, documents, details)
			if err != nil {
				return err
			}
			plan := cli.Plan{Previews: response.Clusters, Details: details}
			fmt.Fprint(a.out, cli.RenderPlan(plan))
			if err := refuseInvalid(response, incomplete); err != nil {
				return err
			}
			if plan.Changes() && !yes {
				if err := cli.Confirm(ctx, a.in, a.err, "\nCarry this out? Type yes: ", "yes", "nothing was applied"); err != nil {
					return err
				}
			}
			fmt.Fprintln(a.out)
			if err := a.applyAll(ctx, documents, false, force); err != nil {
				return err
			}
			if !wait {
				a.afterApply(documents)
				return nil
			}
			for _, p := range response.Clusters {
				goal := &follow.ClusterGoal{Phase: string(v1alpha1.ClusterReady), Limit: timeout}
				if err := a.watchCluster(ctx, p.Cluster, goal, false); err != nil {
					return err
				}
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder (all of its .yaml, .yml and .json files) or - for standard input; may be repeated")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation; required without a terminal")
	cmd.Flags().BoolVar(&details, "details", false, "show the plan in full")
	cmd.Flags().BoolVar(&wait, "wait", false, "follow the clusters until they are Ready")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "with --wait, give up after this time, with exit code 4")
	cmd.Flags().BoolVar(&force, "force-conflicts", false, "take over fields that another tool set")
	cmd.Flags().BoolVar(&incomplete, "allow-invalid", false, "also store invalid clusters; machines do not change until they are valid")
	return cmd
}

// refuseInvalid refuses clusters that can never work as they are written.
func refuseInvalid(response *peoplewire.PlanResponse, allow bool) error {
	if allow {
		return nil
	}
	var lines []string
	for _, p := range response.Clusters {
		for _, text := range p.Invalid {
			lines = append(lines, fmt.Sprintf("  cluster %s: %s", p.Cluster, text))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return exit.Refusedf("nothing was applied, because the plan is invalid:\n%s\n  --allow-invalid stores it all the same; machines do not change until it is valid", strings.Join(lines, "\n"))
}

// afterApply says what to look at next.
func (a *app) afterApply(documents []*manifest.Document) {
	said := map[string]bool{}
	for _, d := range documents {
		if isCluster(d) && d.Object.GetKind() == "Cluster" && !said[d.Object.GetName()] {
			said[d.Object.GetName()] = true
			fmt.Fprintf(a.err, "follow it with: coldrack cluster watch %s --until Ready\n", d.Object.GetName())
		}
	}
}
