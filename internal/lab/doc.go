// Package lab runs virtual machines on a private network, for trying Coldrack out and for its
// end-to-end tests.
//
// A lab is a network namespace with one bridge in it and QEMU machines on that bridge. Nothing connects
// the namespace to the host: no veth, no route, no firewall rule. A server reaches the machines by opening
// its boot sockets inside the namespace (`coldrack serve --boot-netns`), see coldrack.dev/internal/base/netns.
//
// Machines are ordinary processes that outlive the program that started them. All that is known of a lab
// is in its folder, so that the next program finds it:
//
//	DIR/lab.json                    name, network, accelerator
//	DIR/bmc.pem, bmc.password       key and password of the virtual BMC, once there was one
//	DIR/MACHINE/machine.json        what the machine is made of; never changes
//	DIR/MACHINE/disk0.raw, ...      its disks, sparse
//	DIR/MACHINE/vars.fd             UEFI variables
//	DIR/MACHINE/console.log         everything the serial console ever showed
//	DIR/MACHINE/console.sock        the serial console, while the machine is on
//	DIR/MACHINE/qmp.sock            QEMU's control socket, while the machine is on
//	DIR/MACHINE/qemu.pid
//	DIR/MACHINE/network-cut         exists while the cable is pulled
//
// Whether a machine is on is never remembered, only observed: its process is the one whose command line
// names its pid file. A stale pid file, or a pid that the kernel has given to somebody else, fools nobody.
package lab
