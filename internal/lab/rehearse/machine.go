package rehearse

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/discovery"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/wire"
)

// simulatedMachine behaves like one machine from power-on to its running node agent.
type simulatedMachine struct {
	Machine
	rack *rack
	// address that is taken on the wire now.
	address netip.Addr
	fetch   fetcher
	phase   Phase
	// node is the installed system's identity, nil before.
	node    *node
	repeats int
	refused int
	// booted is when the last boot began.
	booted time.Time
}

type node struct {
	server, ca, machine string
	pin                 client.Pin
	key                 *ecdsa.PrivateKey
	chain               string
}

// giveUp ends a simulated machine: its firmware boots something else.
type giveUp struct {
	phase Phase
	error
}

func (g giveUp) Unwrap() error { return g.error }

func lost(format string, args ...any) error { return giveUp{Lost, fmt.Errorf(format, args...)} }

// maxRefusals is how often a machine that the server refuses boots again before it counts as lost.
const maxRefusals = 3

// run simulates the machine until ctx ends or the machine gives up.
func (m *simulatedMachine) run(ctx context.Context) {
	defer m.leave()
	sleep(ctx, m.PowerOn)
	m.enter(DHCP, "")
	for ctx.Err() == nil {
		m.booted = time.Now()
		err := m.boot(ctx)
		m.leave()
		if m.rack.cycle > 0 {
			err = m.patient(ctx, err)
		}
		var end giveUp
		var again *discovery.Reboot
		switch {
		case ctx.Err() != nil:
			return
		case errors.As(err, &again):
			if !again.Wanted {
				if m.refused++; m.refused >= maxRefusals {
					m.enter(Refused, again.Reason)
					return
				}
			}
			sleep(ctx, again.After)
			if m.node == nil {
				m.enter(DHCP, "")
			}
		case errors.As(err, &end):
			m.enter(end.phase, end.Error())
			return
		default:
			m.enter(Lost, err.Error())
			return
		}
	}
}

// patient makes a boot that has failed one that is tried again, as by a person who switches the machine off and on.
func (m *simulatedMachine) patient(ctx context.Context, err error) error {
	end, again := giveUp{phase: Lost}, (*discovery.Reboot)(nil)
	switch {
	case ctx.Err() != nil, errors.As(err, &again) && again.Wanted:
		return err
	case again != nil:
		end.phase = Refused
	default:
		errors.As(err, &end)
	}
	m.enter(end.phase, err.Error())
	return &discovery.Reboot{Reason: err.Error(), Wanted: true, After: 5*time.Second + rand.N(5*time.Second)}
}

// enter tells of a new phase. The way from the installer to the disk is one phase.
func (m *simulatedMachine) enter(p Phase, reason string) {
	if m.node != nil && !p.ended() && p != Restarting {
		return
	}
	if m.phase == p && reason == "" {
		return
	}
	m.phase = p
	m.rack.tell(Event{Machine: m.Index, Phase: p, Reason: reason, Took: time.Since(m.booted)})
}

func (m *simulatedMachine) took(what string, since time.Time) {
	m.rack.tell(Event{Machine: m.Index, What: what, Took: time.Since(since), Repeats: m.repeats})
	m.repeats = 0
}

// use makes a leased address the machine's own.
func (m *simulatedMachine) use(a netip.Addr) error {
	if m.address == a {
		return nil
	}
	m.leave()
	if err := m.rack.cable.take(a); err != nil {
		return err
	}
	m.address = a
	m.fetch = fetcher{cable: m.rack.cable, from: a, pace: pace{rate: m.Rate}, verify: m.Index%64 == 0}
	return nil
}

func (m *simulatedMachine) leave() {
	m.fetch.close()
	if m.address.IsValid() {
		m.rack.cable.release(m.address)
		m.address = netip.Addr{}
	}
}

// boot is one way from the firmware on. It returns what ends it.
func (m *simulatedMachine) boot(ctx context.Context) error {
	firmware := m.firmware()
	lease, err := m.lease(ctx, firmware.dhcp)
	if err != nil {
		return err
	}
	m.enter(FirstStage, "")
	began := time.Now()
	if strings.Contains(lease.BootFile, "://") {
		return lost("%s was given the URL %s, which it cannot load", firmware.dhcp.name, lease.BootFile)
	}
	if err := m.tftp(ctx, firmware.tftp, *lease); err != nil {
		return err
	}
	m.took(tookStage, began)

	m.enter(IPXE, "")
	if lease, err = m.lease(ctx, ipxeFor(firmware)); err != nil {
		return err
	}
	script, err := m.decide(ctx, lease.BootFile)
	if err != nil {
		return err
	}
	if script.local != "" {
		if _, err := m.fetch.get(ctx, script.local, 0, 0, 0); err != nil {
			return lost("loading %s: %w", script.local, err)
		}
		if m.node == nil {
			return lost("told to start its own disk, which is blank")
		}
		return m.beNode(ctx)
	}
	if m.node != nil {
		return giveUp{Refused, fmt.Errorf("an installed machine was told to load the discovery system: %s", script.says)}
	}
	m.enter(Loading, "")
	began = time.Now()
	for _, file := range []string{script.kernel, script.initrd} {
		if _, err := m.fetch.get(ctx, file, 0, 0, 0); err != nil {
			return lost("loading %s: %w", file[strings.LastIndexByte(file, '/')+1:], err)
		}
	}
	m.took(tookKernel, began)
	m.fetch.close()
	return m.discover(ctx, script.args)
}

// lease gets an address as one of the machine's programs does.
func (m *simulatedMachine) lease(ctx context.Context, c dhcpClient) (*Lease, error) {
	m.leave() // firmware that asks has no address yet
	e := exchange{client: c, mac: m.mac(), uuid: m.Inventory.Identifiers.UUID}
	xid := rand.Uint32()
	e.xid = dhcpv4.TransactionID{byte(xid >> 24), byte(xid >> 16), byte(xid >> 8), byte(xid)}
	box, leave := m.rack.cable.expect(e.mac)
	defer leave()
	began := time.Now()
	message, wait := e.start(began)
	for {
		if message != nil {
			if err := m.rack.cable.send(e.mac, message); err != nil {
				return nil, err
			}
		}
		timer := time.NewTimer(wait)
		message = nil
		for message == nil {
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil, context.Cause(ctx)
			case <-timer.C:
				m.repeats++
				var err error
				if message, wait, err = e.expire(time.Now()); err != nil {
					return nil, giveUp{Lost, err}
				}
			case answer := <-box:
				next, longer, lease := e.receive(answer, time.Now())
				if lease != nil {
					timer.Stop()
					m.took(tookLease, began)
					m.rack.tell(Event{Machine: m.Index, Address: lease.Address})
					return lease, m.use(lease.Address)
				}
				if next != nil {
					message, wait = next, longer
				}
			}
		}
		timer.Stop()
	}
}

// tftp loads the first stage.
func (m *simulatedMachine) tftp(ctx context.Context, c tftpClient, lease Lease) error {
	if c.askSize {
		if err := m.transfer(ctx, &download{client: c, name: lease.BootFile, sizeOnly: true}, lease.Next); err != nil {
			return err
		}
	}
	return m.transfer(ctx, &download{client: c, name: lease.BootFile}, lease.Next)
}

func (m *simulatedMachine) transfer(ctx context.Context, d *download, server netip.Addr) error {
	conn, err := m.rack.cable.udp(ctx, m.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	to := netip.AddrPortFrom(server, 69)
	var peer netip.AddrPort
	buffer := make([]byte, 2048)
	send := d.start()
	pace := pace{rate: m.Rate}
	for {
		if send != nil && !m.rack.cable.dropped() {
			if _, err := conn.WriteToUDPAddrPort(send, to); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		conn.SetReadDeadline(time.Now().Add(d.client.timeout))
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			m.repeats++
			if send, err = d.expire(); err != nil {
				return giveUp{Lost, err}
			}
			continue
		}
		if err != nil {
			return err
		}
		send = nil
		if from.Addr().Unmap() != server || (peer.IsValid() && peer != from) {
			continue
		}
		// RFC 1350, section 4: from its first answer on the server has a port of its own for the transfer.
		peer, to = from, from
		m.rack.cable.received.Add(int64(n))
		pace.took(ctx, n)
		var done bool
		send, done, err = d.receive(buffer[:n])
		if err != nil {
			return giveUp{Lost, err}
		}
		if done {
			_, err := conn.WriteToUDPAddrPort(send, to)
			return err
		}
	}
}

// decide asks what to boot, as iPXE does with httpboot.ChainScript.
func (m *simulatedMachine) decide(ctx context.Context, chain string) (bootScript, error) {
	for {
		var script bootScript
		base, err := url.Parse(chain)
		if err == nil {
			_, err = m.fetch.get(ctx, chain, 0, 0, 64<<10)
		}
		if err != nil {
			return script, lost("iPXE cannot load %s: %w", chain, err)
		}
		base.Path, base.RawQuery = "/boot/ipxe", m.query()
		attempt := 0
		for ; attempt < scriptAttempts && ctx.Err() == nil; attempt++ {
			if attempt > 0 {
				m.repeats++
				sleep(ctx, scriptPause)
			}
			began := time.Now()
			var text []byte
			if text, err = m.fetch.get(ctx, base.String(), 0, 0, 64<<10); err != nil {
				continue
			}
			m.took(tookDecision, began)
			if script, err = parseScript(string(text)); err != nil {
				return script, giveUp{Lost, err}
			}
			break
		}
		switch {
		case ctx.Err() != nil:
			return script, context.Cause(ctx)
		case err != nil:
			return script, lost("iPXE got no boot script %d times: %w", attempt, err)
		case !script.retry:
			return script, nil
		}
		m.enter(Waiting, script.says)
		sleep(ctx, retryPause)
		m.enter(IPXE, "")
	}
}

func (m *simulatedMachine) query() string {
	hyphens := func(mac string) string { return strings.ReplaceAll(mac, ":", "-") }
	v := url.Values{}
	v.Add("mac", hyphens(m.Inventory.NICs[0].MAC))
	for _, nic := range m.Inventory.NICs {
		v.Add("mac", hyphens(nic.MAC))
	}
	v.Set("uuid", m.Inventory.Identifiers.UUID)
	v.Set("serial", m.Inventory.Identifiers.Serial)
	v.Set("manufacturer", m.Inventory.System.Vendor)
	v.Set("product", m.Inventory.System.Product)
	v.Set("arch", "x86_64")
	v.Set("platform", m.firmware().Platform)
	v.Set("ip", m.address.String())
	return v.Encode()
}

const agentName = "coldrack-rehearsal"

func (m *simulatedMachine) client(server string, pin client.Pin, ca string) (*client.Client, error) {
	o := client.Options{Server: server, Pin: pin, Agent: agentName}
	if ca != "" {
		var err error
		if o.CAs, err = client.ParseCAs(ca); err != nil {
			return nil, err
		}
	}
	from := m.address
	o.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		return m.rack.cable.tcp(ctx, from, address, true)
	}
	return client.New(o)
}

// refusal is what the discovery system does about a final answer.
func refusal(what string, err error) error {
	if again := (*discovery.Reboot)(nil); errors.As(err, &again) {
		return err
	}
	after := 60 * time.Second
	if client.Code(err) == wire.CodeUnknownNonce {
		after = 10*time.Second + rand.N(10*time.Second)
	}
	return &discovery.Reboot{Reason: fmt.Sprintf("%s: %v", what, err), After: after}
}

// discover is the discovery system: enrol, report, follow.
func (m *simulatedMachine) discover(ctx context.Context, line string) error {
	m.enter(Enrolling, "")
	if _, err := m.lease(ctx, agentDHCP); err != nil {
		return err
	}
	args, err := discovery.ParseArguments(line)
	if err != nil {
		return lost("kernel command line: %w", err)
	}
	server, err := m.client(args.Server, args.Pin, "")
	if err != nil {
		return err
	}
	defer func() { server.Close() }()
	key, csr, err := client.NewKey("discovery")
	if err != nil {
		return err
	}
	began := time.Now()
	var enrolled wire.EnrollResponse
	err = retry.Do(ctx, nil, func(ctx context.Context) (err error) {
		enrolled, err = server.Enroll(ctx, wire.EnrollRequest{Nonce: args.Nonce, Identifiers: m.Inventory.Identifiers,
			BootMAC: args.MAC, CSR: csr, AgentVersion: agentName})
		return err
	})
	if err != nil {
		return refusal("enrol", err)
	}
	pair, err := client.KeyPair(enrolled.Certificate, key)
	if err != nil {
		return err
	}
	server.Use(pair)
	m.took(tookEnrol, began)
	inventory := m.Inventory
	inventory.Address = m.address.String()
	began = time.Now()
	if err := retry.Do(ctx, nil, func(ctx context.Context) error { return server.Inventory(ctx, inventory) }); err != nil {
		return refusal("report the inventory", err)
	}
	m.took(tookInventory, began)
	m.enter(Waiting, "")
	return m.follow(ctx, server, args)
}

func (m *simulatedMachine) follow(ctx context.Context, server *client.Client, args discovery.Arguments) error {
	done := map[string]bool{}
	version, told := "", ""
	for {
		var next wire.Assignment
		asked, wait := time.Now(), 50*time.Second
		err := retry.Do(ctx, nil, func(ctx context.Context) (err error) {
			if next, err = server.Assignment(ctx, version, wait); err != nil {
				wait = 0
			}
			return err
		})
		if err != nil {
			return refusal("ask what to do", err)
		}
		if next.Version == version && time.Since(asked) < time.Second {
			sleep(ctx, time.Second)
		}
		version = next.Version
		switch {
		case next.Action == wire.ActionReboot:
			return &discovery.Reboot{Reason: "server requested a reboot", Wanted: true}
		case next.Action == wire.ActionInstall && next.Plan != nil && !done[next.Plan.IntentID]:
			done[next.Plan.IntentID] = true
			m.enter(Installing, "")
			began := time.Now()
			cancelled, err := m.install(ctx, server, args, *next.Plan)
			if err != nil {
				return refusal("install", err)
			}
			if cancelled {
				m.enter(Waiting, "")
				continue
			}
			m.took(tookInstall, began)
			m.enter(Restarting, "")
			return &discovery.Reboot{Reason: "installed", Wanted: true}
		case next.Message != "" && next.Message != told:
			told = next.Message
			m.enter(Waiting, told)
		}
	}
}

// install goes through the steps of a real one; what it would write, it drops.
func (m *simulatedMachine) install(ctx context.Context, server *client.Client, args discovery.Arguments, plan wire.InstallPlan) (cancelled bool, err error) {
	steps := make([]wire.Step, 0, 10)
	for _, name := range wire.InstallSteps() {
		steps = append(steps, wire.Step{Name: name, State: wire.StatePending})
	}
	report := func() (bool, error) {
		var answer wire.ProgressResponse
		err := retry.Do(ctx, nil, func(ctx context.Context) (err error) {
			answer, err = server.Progress(ctx, wire.Progress{IntentID: plan.IntentID, Steps: steps})
			return err
		})
		return answer.Cancel, err
	}
	at := func(index int, state wire.State) *wire.Step {
		now := time.Now().UTC()
		s := &steps[index]
		s.State = state
		if state == wire.StateRunning {
			s.StartedAt = &now
		} else {
			s.FinishedAt = &now
		}
		return s
	}
	index := func(name string) int {
		for i, s := range steps {
			if s.Name == name {
				return i
			}
		}
		return 0
	}
	at(0, wire.StateRunning)
	if stop, err := report(); err != nil || stop {
		return stop, err
	}
	image := index(wire.StepImage)
	for i := range image {
		if i > 0 {
			at(i, wire.StateRunning)
		}
		at(i, wire.StateSucceeded)
	}
	began := time.Now()
	at(image, wire.StateRunning).BytesTotal = plan.Image.Size
	if stop, err := report(); err != nil || stop {
		return stop, err
	}
	if stop, err := m.image(ctx, args.Boot, plan, at(image, wire.StateRunning), report); err != nil || stop {
		return stop, err
	}
	at(image, wire.StateSucceeded)
	m.took(tookImage, began)
	for _, name := range []string{wire.StepBootloader, wire.StepNodeConfig} {
		at(index(name), wire.StateRunning)
		at(index(name), wire.StateSucceeded)
	}
	at(index(wire.StepIdentity), wire.StateRunning)
	if stop, err := report(); err != nil || stop {
		return stop, err
	}
	key, csr, err := client.NewKey(plan.Machine)
	if err != nil {
		return false, err
	}
	var identity wire.IdentityResponse
	err = retry.Do(ctx, nil, func(ctx context.Context) (err error) {
		identity, err = server.Identity(ctx, wire.IdentityRequest{IntentID: plan.IntentID, CSR: csr})
		return err
	})
	if err != nil {
		return false, err
	}
	at(index(wire.StepIdentity), wire.StateSucceeded)
	at(index(wire.StepReboot), wire.StateRunning)
	disk := "disk"
	if len(m.Inventory.Disks) > 0 {
		disk = m.Inventory.Disks[0].ByID[0]
	}
	err = retry.Do(ctx, nil, func(ctx context.Context) error {
		return server.Complete(ctx, wire.Complete{IntentID: plan.IntentID, State: wire.StateSucceeded, Disk: disk,
			ImageDigest: plan.Image.Digest, Steps: steps})
	})
	if err != nil {
		return false, err
	}
	m.node = &node{server: args.Server, pin: args.Pin, ca: identity.CA, machine: plan.Machine, key: key, chain: identity.Certificate}
	return false, nil
}

// image fetches all that the plan names.
func (m *simulatedMachine) image(ctx context.Context, boot string, plan wire.InstallPlan, step *wire.Step, report func() (bool, error)) (cancelled bool, err error) {
	content := func(digest string) string { return boot + "/content/" + strings.Replace(digest, ":", "/", 1) }
	get := func(address string, offset, length, keep int64) (body []byte, err error) {
		err = retry.Do(ctx, nil, func(ctx context.Context) (err error) {
			body, err = m.fetch.get(ctx, address, offset, length, keep)
			return err
		})
		return body, err
	}
	keep := int64(0)
	if !m.rack.indexes.has(plan.Image.Index.Digest) {
		keep = plan.Image.Index.Size
	}
	text, err := get(content(plan.Image.Index.Digest), 0, 0, keep)
	if err != nil {
		return false, fmt.Errorf("fetch the image's index: %w", err)
	}
	index, err := m.rack.indexes.get(plan.Image.Index.Digest, text)
	if err != nil {
		return false, err
	}
	for _, c := range []wire.Content{plan.Boot.BIOSBoot, plan.Boot.BIOSCore, plan.Boot.Shim, plan.Boot.GRUB} {
		if _, err := get(content(c.Digest), 0, 0, 0); err != nil {
			return false, fmt.Errorf("fetch a boot loader: %w", err)
		}
	}
	told := time.Now()
	for _, chunk := range index.Chunks {
		keep := int64(0)
		if m.fetch.verify {
			keep = chunk.BlobLength
		}
		stored, err := get(content(index.Blob), chunk.BlobOffset, chunk.BlobLength, keep)
		if err != nil {
			return false, fmt.Errorf("fetch the image at byte %d: %w", chunk.BlobOffset, err)
		}
		if keep > 0 {
			if err := chunk.Verify(stored); err != nil {
				return false, fmt.Errorf("the image at byte %d: %w", chunk.BlobOffset, err)
			}
		}
		step.BytesDone = chunk.Offset + chunk.Length
		if time.Since(told) >= time.Second {
			told = time.Now()
			if stop, err := report(); err != nil || stop {
				return stop, err
			}
		}
	}
	step.BytesDone = plan.Image.Size
	m.fetch.close()
	return false, nil
}

// beNode reports as the installed system until ctx ends.
func (m *simulatedMachine) beNode(ctx context.Context) error {
	m.fetch.close()
	server, err := m.client(m.node.server, m.node.pin, m.node.ca)
	if err != nil {
		return err
	}
	defer func() { server.Close() }()
	pair, err := client.KeyPair(m.node.chain, m.node.key)
	if err != nil {
		return err
	}
	server.Use(pair)
	booted, off := time.Now().UTC(), time.Now().Add(m.rack.cycle/2+rand.N(m.rack.cycle+1))
	beat := wire.Heartbeat{AgentVersion: agentName, OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0", BootedAt: booted,
		BootID:     fmt.Sprintf("%08x-0000-4000-8000-%012x", rand.Uint32(), m.Index),
		Addresses:  []string{m.address.String() + "/32"},
		Interfaces: map[string]string{m.address.String(): "eno1"}}
	for ctx.Err() == nil {
		began := time.Now()
		beat.Now = began.UTC()
		answer, err := server.Heartbeat(ctx, beat)
		wait := 30 * time.Second
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !retry.Transient(err):
			return giveUp{Refused, fmt.Errorf("heartbeat: %w", err)}
		case err != nil:
			wait = time.Second + rand.N(time.Second)
			m.repeats++
		default:
			m.took(tookHeartbeat, began)
			m.enter(Ready, "")
			if answer.IntervalSeconds > 0 {
				wait = time.Duration(answer.IntervalSeconds) * time.Second
			}
			if answer.Reboot {
				return &discovery.Reboot{Reason: answer.RebootReason, Wanted: true}
			}
		}
		wait += rand.N(wait/10 + time.Millisecond)
		if m.rack.cycle > 0 && time.Until(off) < wait {
			sleep(ctx, time.Until(off))
			return &discovery.Reboot{Reason: "switched off and on", Wanted: true}
		}
		sleep(ctx, wait)
	}
	return context.Cause(ctx)
}

// indexes are the chunk lists of images; a thousand machines share one copy.
type indexes struct {
	mu    sync.Mutex
	known map[string]*diskimage.Index
}

func (i *indexes) has(digest string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.known[digest] != nil
}

func (i *indexes) get(digest string, text []byte) (*diskimage.Index, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if known := i.known[digest]; known != nil {
		return known, nil
	}
	index := &diskimage.Index{}
	if err := json.Unmarshal(text, index); err != nil {
		return nil, fmt.Errorf("the image's index: %w", err)
	}
	i.known[digest] = index
	return index, nil
}
