package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// uiLink is what `coldrack ui` prints.
type uiLink struct {
	URL   string    `json:"url"`
	Until time.Time `json:"until"`
	// Authority is the SHA-256 of the certificate that signed the server's, as browsers show it.
	Authority string `json:"authority,omitempty"`
}

func (a *app) uiCommand() *cobra.Command {
	var (
		output               string
		noBrowser, authority bool
	)
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Open the web pages",
		Long: `Print a link that opens the server's web pages as the person whose kubeconfig this is, and open it in a browser where there is
one. The link works once, within five minutes. What one may do there follows from the role, as everywhere.

The server's certificate is signed by its own authority, which browsers do not know. They warn until that is imported:
--authority prints it.`,
		Example: `  coldrack ui
  coldrack ui --authority > coldrack-authority.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := a.connect()
			if err != nil {
				return err
			}
			trusted, err := authorityOf(config)
			if err != nil {
				return err
			}
			if authority {
				if len(trusted) == 0 {
					return fmt.Errorf("the kubeconfig names no authority: the server is trusted by what this machine trusts")
				}
				_, err := a.out.Write(trusted)
				return err
			}
			var link peoplewire.UILink
			err = request.Post(cmd.Context(), config, "open the web pages", struct{}{}, &link, peoplewire.PathUILinks)
			var refused *exit.Error
			if errors.As(err, &refused) && refused.Code == exit.NotFound {
				return exit.NotFoundf("this server has no web pages: it runs with --ui=false, or is older than they are")
			}
			if err != nil {
				return err
			}
			printed := uiLink{URL: strings.TrimSuffix(config.Host, "/") + link.Path, Until: link.Until, Authority: fingerprintOf(trusted)}
			if done, err := a.printStructured(output, printed); done {
				return err
			}
			fmt.Fprintln(a.out, printed.URL)
			fmt.Fprintf(a.err, "It opens one session, until %s.\n", link.Until.Local().Format(time.TimeOnly))
			if printed.Authority != "" {
				fmt.Fprintf(a.err, "The browser warns of the certificate until it knows the server's authority (coldrack ui --authority), SHA-256 %s\n", printed.Authority)
			}
			if _, _, tty := cli.Terminal(a.out); tty && !noBrowser {
				a.openBrowser(cmd.Context(), printed.URL)
			}
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "only print the link")
	cmd.Flags().BoolVar(&authority, "authority", false, "print the certificate that browsers have to trust, and no link")
	return cmd
}

// openBrowser opens an address where somebody sits at a screen; the link was printed, so that nothing is lost where it does not work.
func (a *app) openBrowser(ctx context.Context, address string) {
	for _, display := range []string{"DISPLAY", "WAYLAND_DISPLAY"} {
		if at, ok := a.env(display); ok && at != "" {
			if err := exec.CommandContext(ctx, "xdg-open", address).Run(); err != nil {
				fmt.Fprintf(a.err, "no browser was opened: %v\n", err)
			}
			return
		}
	}
}

// authorityOf returns the certificates, PEM, that the server is trusted by; none: those of this machine.
func authorityOf(config *rest.Config) ([]byte, error) {
	if len(config.CAData) > 0 || config.CAFile == "" {
		return config.CAData, nil
	}
	return os.ReadFile(config.CAFile)
}

// fingerprintOf the first certificate, as browsers show it: pairs of upper-case digits.
func fingerprintOf(certPEM []byte) string {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	text := strings.ToUpper(hex.EncodeToString(sum[:]))
	var pairs []string
	for i := 0; i < len(text); i += 2 {
		pairs = append(pairs, text[i:i+2])
	}
	return strings.Join(pairs, ":")
}
