// Command node is kubelet, kubeadm and kubectl, whichever it is called as. Most of their code is the same: as one program they take half
// the space, and are fetched and unpacked once.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	problems "k8s.io/kubernetes/cmd/kubeadm/app/util/errors"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "kubeadm":
		// It takes every flag that some package has registered here, and those of the kubelet are none of its own.
		flag.CommandLine = flag.NewFlagSet(os.Args[0], flag.ExitOnError)
		pflag.CommandLine = pflag.NewFlagSet(os.Args[0], pflag.ExitOnError)
		problems.HandleError(kubeadm.Run())
	case "kubectl":
		_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args)) // a wrong level is complained of when flags are read
		if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	default:
		fmt.Fprintf(os.Stderr, "%s: this program must be called kubelet, kubeadm or kubectl\n", name)
		os.Exit(2)
	}
}
