package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/machine"
)

func (a *app) rescueCommand() *cobra.Command {
	var (
		pick      machine.Selection
		keyFiles  []string
		autologin bool
		end       bool
		output    string
	)
	cmd := &cobra.Command{
		Use:   "rescue NAME... | -l SELECTOR",
		Short: "Have machines boot a live system with SSH; no disk is touched",
		Long: `Have machines boot the live system (the discovery system) from the network, until --end takes that back. With --ssh-key, root
may log in by SSH with these keys; the host key is made at each boot, and the console shows its fingerprint. With
--autologin there is a root shell on the console. No disk is touched or mounted, and an install or a release that was
asked for waits. Nothing is restarted: the machine boots so the next time that it boots from the network.

Whoever logs in can read the disks of the machine, so for an installed machine this needs role admin.`,
		Example: `  coldrack rescue rack1-u10 --ssh-key ~/.ssh/id_ed25519.pub
  coldrack rescue rack1-u10 --autologin
  coldrack rescue rack1-u10 --end`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			pick.Names = args
			switch {
			case len(args) == 0 && pick.Selector == "":
				return exit.Usagef("name machines, or select them with -l")
			case end && (len(keyFiles) > 0 || autologin):
				return exit.Usagef("--end takes the rescue back; it goes with no other flag")
			case !end && len(keyFiles) == 0 && !autologin:
				return exit.Usagef("say who may log in: --ssh-key FILE, --autologin, or both")
			}
			if err := pick.Check(); err != nil {
				return err
			}
			keys, err := readSSHKeys(keyFiles)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			machines, err := pick.List(ctx, c)
			if err != nil {
				return err
			}
			if len(machines) == 0 {
				return exit.NotFoundf("no machine has labels %s", pick.Selector)
			}
			if end {
				answers, err := machine.EndRescue(ctx, c, machines)
				return errors.Join(err, a.printRescues(output, answers))
			}
			if err := machine.CheckRescue(machines); err != nil {
				return err
			}
			answers, err := machine.AskRescue(ctx, c, machines, v1alpha1.Rescue{
				SSHKeys: keys, Autologin: autologin, RequestedBy: machine.Requester(), RequestedAt: &metav1.Time{Time: a.now()},
			})
			return errors.Join(err, a.printRescues(output, answers))
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVarP(&pick.Selector, "selector", "l", "", "all machines with these labels")
	cmd.Flags().StringArrayVar(&keyFiles, "ssh-key", nil, "file with OpenSSH public keys, one a line; may be given several times")
	cmd.Flags().BoolVar(&autologin, "autologin", false, "open a root shell on the console, without a password")
	cmd.Flags().BoolVar(&end, "end", false, "take it back")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) printRescues(output string, answers []machine.RescueAnswer) error {
	if done, err := a.printStructured(output, answers); done || err != nil {
		return err
	}
	for _, answer := range answers {
		fmt.Fprintf(a.out, "%s: %s\n", answer.Machine, answer.Message)
	}
	return nil
}

// readSSHKeys reads the public keys of files, as in ~/.ssh/authorized_keys. The server checks their form.
func readSSHKeys(files []string) ([]string, error) {
	var keys []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, exit.Usagef("--ssh-key: %w", err)
		}
		if strings.Contains(string(text), "PRIVATE KEY") {
			return nil, exit.Usagef("--ssh-key: %s is a private key; give the public one, %s.pub", file, file)
		}
		before := len(keys)
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && !slices.Contains(keys, line) {
				keys = append(keys, line)
			}
		}
		if len(keys) == before {
			return nil, exit.Usagef("--ssh-key: %s has no further key", file)
		}
	}
	return keys, nil
}
