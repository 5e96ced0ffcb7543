package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/doctor"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/lab"
	"coldrack.dev/internal/netboot/dns"
	"coldrack.dev/internal/netboot/sntp"
	"coldrack.dev/internal/server/daemon"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) doctorCommand() *cobra.Command {
	var (
		server  serverFlags
		probe   bool
		foreign string
		address string
		output  string
		packets string
		segment string
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine can run the server, and what to fix",
		Long: `Check ports, privileges, interfaces, clock, disk and certificates of this machine, with the configuration that
"coldrack serve" would have. Nothing is changed. The exit code is 1 when a check fails.

While the server runs, the ports that it has open, and on which interfaces, are compared with those that it should have.

--probe-dhcp also asks, on every interface, who answers DHCP already, and whether an ARP proxy answers for the addresses of
others. That sends packets; no address is taken.

While the server runs, what it has found on its Subnets is shown as well, such as firmware that ignores proxy DHCP. For that,
--foreign-dhcp prints lines for the site's own DHCP server, which then itself tells machines what to boot, and checks nothing.

--capture explains a packet capture (pcap or pcapng) instead: DHCP, port 4011, TFTP, HTTP and ARP of machines that boot, line by
line, and a verdict for each machine. It may come from another site, and needs no privilege.

--segment acts as machines that boot on the segment of an interface instead: it asks DHCP as BIOS, UEFI (x64 and arm64, by PXE and by HTTP)
and iPXE do, loads what each is told to load, up to the first bytes of kernel and initrd, and says what a machine of each kind would
experience. It takes root and some ten seconds, half a minute where nobody answers. It always asks with the same hardware address, which begins with 02:c0:1d; it leases an address only
where the interface has none, and gives it back. A Coldrack server keeps nothing of it: no lease, no Machine.`,
		Example: `  coldrack doctor --probe-dhcp
  coldrack doctor --foreign-dhcp dnsmasq --boot-address 10.20.0.1 > /etc/dnsmasq.d/coldrack.conf
  coldrack doctor --segment eth1 -o json
  tcpdump -i eth0 -w boot.pcap 'arp or udp or tcp port 7080'; coldrack doctor --capture boot.pcap`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if packets != "" {
				return a.explainCapture(packets, output)
			}
			if segment != "" {
				return a.probeSegment(cmd.Context(), segment, output)
			}
			cfg, err := server.load(a)
			if err != nil {
				return err
			}
			if foreign != "" {
				cfg.BootAddress = cmp.Or(address, cfg.BootAddress)
				return a.printForeignDHCP(foreign, cfg)
			}
			results := doctor.Run(cmd.Context(), doctor.Subject{
				DataDir:    cfg.DataDir,
				Ports:      serverPorts(cfg),
				Boot:       !cfg.NoBoot,
				Interfaces: cfg.Interfaces,
				ProbeDHCP:  probe,
				ProbeKVM:   probeKVM,
				Subnets:    func(ctx context.Context) ([]v1alpha1.Subnet, error) { return serverSubnets(ctx, cfg) },
				Expiry:     func(ctx context.Context) ([]peoplewire.Expiry, error) { return serverExpiry(ctx, cfg) },
				Restored:   func() (peoplewire.Restored, error) { return daemon.ReadRestored(cfg) },
				Names:      func(ctx context.Context) (*peoplewire.Names, error) { return serverNames(ctx, cfg) },
			})
			if done, err := a.printStructured(output, results); done && err != nil {
				return err
			} else if !done {
				a.printResults(results)
			}
			if doctor.Worst(results) == doctor.Fail {
				return &exit.Silent{Code: exit.Failure}
			}
			return nil
		},
	}
	server.addFlags(cmd)
	cmd.Flags().BoolVar(&probe, "probe-dhcp", false, "ask on every interface who answers DHCP, and ARP for others; takes four seconds and root")
	cmd.Flags().StringVar(&foreign, "foreign-dhcp", "", "print what another DHCP server must say for machines to boot from here: "+strings.Join(doctor.ForeignServers(), ", "))
	cmd.Flags().StringVar(&address, "boot-address", "", "for --foreign-dhcp: the address by which machines reach the server (default its own, if there is one)")
	cmd.Flags().StringVar(&packets, "capture", "", "explain a packet capture of machines that boot, and check nothing; - is standard input")
	cmd.Flags().StringVar(&segment, "segment", "", "act as machines that boot on the segment of this interface, and check nothing else; takes ten seconds and root")
	_ = cmd.MarkFlagFilename("capture", "pcap", "pcapng", "cap")
	cmd.MarkFlagsMutuallyExclusive("capture", "probe-dhcp")
	cmd.MarkFlagsMutuallyExclusive("capture", "foreign-dhcp", "segment")
	cmd.MarkFlagsMutuallyExclusive("segment", "probe-dhcp")
	_ = cmd.RegisterFlagCompletionFunc("foreign-dhcp", cobra.FixedCompletions(doctor.ForeignServers(), cobra.ShellCompDirectiveNoFileComp))
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// printForeignDHCP prints the lines for another DHCP server.
func (a *app) printForeignDHCP(kind string, cfg daemon.Config) error {
	address, err := bootAddress(cfg)
	if err != nil {
		return err
	}
	lines, err := doctor.ForeignDHCP(kind, address, cfg.BootPort)
	if err != nil {
		return exit.Usagef("%v", err)
	}
	fmt.Fprint(a.out, lines)
	return nil
}

// bootAddress is the one address that machines reach this server by.
func bootAddress(cfg daemon.Config) (netip.Addr, error) {
	if cfg.BootAddress != "" {
		address, err := netip.ParseAddr(cfg.BootAddress)
		if err != nil {
			return address, exit.Usagef("--boot-address: %q is not an IP address", cfg.BootAddress)
		}
		return address, nil
	}
	if cfg.BootNetns != "" {
		return netip.Addr{}, errors.New("the server's addresses are in another network namespace: say by --boot-address which one machines reach")
	}
	own, err := doctor.BootAddresses(cfg.Interfaces)
	switch {
	case err != nil:
		return netip.Addr{}, err
	case len(own) == 0:
		return netip.Addr{}, errors.New("no interface has an IPv4 address: say by --boot-address where machines reach the server")
	case len(own) > 1:
		return netip.Addr{}, fmt.Errorf("this machine has several addresses, %s: say by --boot-address which one machines reach", strings.Join(own, ", "))
	}
	return netip.ParseAddr(own[0])
}

// serverSubnets asks the running server for its Subnets; none where no server has run.
func serverSubnets(ctx context.Context, cfg daemon.Config) ([]v1alpha1.Subnet, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cfg.AdminKubeconfig())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, err
	}
	var all v1alpha1.SubnetList
	if err := c.List(ctx, &all); err != nil {
		return nil, err
	}
	return all.Items, nil
}

// serverExpiry asks the running server by its administrator's kubeconfig, and reads the data folder where there is none.
func serverExpiry(ctx context.Context, cfg daemon.Config) ([]peoplewire.Expiry, error) {
	onDisk, err := daemon.ExpiryOnDisk(cfg, time.Now())
	if err != nil || len(onDisk) == 0 {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", cfg.AdminKubeconfig())
	if err != nil {
		return onDisk, fmt.Errorf("certificates of the running server are not known: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var all []peoplewire.Expiry
	if err := request.Get(ctx, config, "certificates of the running server", &all, peoplewire.PathExpiry); err != nil {
		return onDisk, err
	}
	return all, nil
}

// serverNames asks the running server for its names by its administrator's kubeconfig; nil where there is none, or no boot services.
func serverNames(ctx context.Context, cfg daemon.Config) (*peoplewire.Names, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cfg.AdminKubeconfig())
	if err != nil || cfg.NoBoot || cfg.Kubeconfig != "" {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var all peoplewire.Names
	return &all, request.Get(ctx, config, "names of the running server", &all, peoplewire.PathNames)
}

// probeKVM is the lab's trial.
func probeKVM(ctx context.Context) (whyNot string, err error) {
	_, whyNot, err = lab.ProbeAccelerator(ctx)
	return whyNot, err
}

// serverPorts are the ports that serve opens in this network namespace.
func serverPorts(cfg daemon.Config) []doctor.Port {
	var ports []doctor.Port
	if cfg.Kubeconfig == "" {
		ports = append(ports, doctor.Port{Network: "tcp", Address: cfg.APIAddress, For: "people's API (apiAddress)"})
	}
	if cfg.NoBoot || cfg.BootNetns != "" {
		return ports
	}
	at := func(network string, port int, use string) doctor.Port {
		return doctor.Port{Network: network, Address: net.JoinHostPort("", strconv.Itoa(port)), For: use, Interfaces: cfg.Interfaces}
	}
	dhcp := at("udp4", 67, "DHCP")
	dhcp.Each = true
	discovery := at("udp4", 4011, "PXE boot server discovery")
	discovery.Each, discovery.Optional = true, true
	six := at("udp6", 547, "DHCPv6 in IPv6 Subnets")
	six.Each, six.Optional = true, true
	time := at("udp4", sntp.Port, "the time")
	time.Optional = true
	if cfg.NTP {
		ports = append(ports, time)
	}
	if cfg.DNS {
		for _, network := range []string{"udp4", "tcp4"} {
			names := at(network, dns.Port, "DNS in Subnets with serveDNS")
			names.Optional, names.Own = true, true
			ports = append(ports, names)
		}
	}
	if cfg.UpdatePort != 0 {
		ports = append(ports, at("tcp4", cfg.UpdatePort, "updates (updatePort)"))
	}
	if cfg.EtcdDiscoveryPort != 0 {
		ports = append(ports, at("tcp4", cfg.EtcdDiscoveryPort, "etcd discovery (etcdDiscoveryPort)"))
	}
	return append(ports, dhcp, discovery, six,
		at("udp4", cfg.TFTPPort, "TFTP (tftpPort)"),
		at("tcp4", cfg.BootPort, "boot files (bootPort)"),
		at("tcp4", cfg.MachinePort, "the machine API (machinePort)"),
	)
}

func (a *app) printResults(results []doctor.Result) {
	for _, r := range results {
		fmt.Fprintf(a.out, "%-4s  %-18s %s\n", r.State, r.Check, r.Found)
		if r.Do != "" {
			fmt.Fprintf(a.out, "      %-18s -> %s\n", "", r.Do)
		}
	}
}
