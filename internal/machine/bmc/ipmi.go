package bmc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"

	"coldrack.dev/internal/base/termtext"
)

const ipmiPort = 623

// ipmi is a Driver over RMCP+ (IPMI 2.0, lanplus).
type ipmi struct {
	target  Target
	options Options
	host    string
	port    int
	session *client.Client // nil before the first request
}

func openIPMI(t Target, o Options) (*ipmi, error) {
	d := &ipmi{target: t, options: o, host: strings.Trim(t.Address, "[]"), port: ipmiPort}
	if host, port, err := net.SplitHostPort(t.Address); err == nil {
		number, err := strconv.Atoi(port)
		if err != nil || number < 1 || number > 65535 {
			return nil, &Error{Kind: Misconfigured, Address: t.Address, What: fmt.Sprintf("%q is not a port", port)}
		}
		d.host, d.port = host, number
	}
	switch {
	case d.host == "" || strings.ContainsAny(d.host, "/@? #"):
		return nil, &Error{Kind: Misconfigured, Address: t.Address, What: "is not a host or host:port"}
	case len(t.Password) > 20:
		return nil, &Error{Kind: Misconfigured, Address: t.Address, What: "the password is longer than the 20 characters that IPMI allows"}
	}
	return d, nil
}

// ipmiRetries is how often a datagram without an answer is sent again. A request that changes the power is sent once: BMCs should
// recognise a repeated one by its sequence number (section 6.12.13), and some carry it out again.
const ipmiRetries = 4

func (d *ipmi) connect(ctx context.Context) (*client.Client, error) {
	if d.session != nil {
		return d.session, nil
	}
	host := d.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // the library joins it with the port
	}
	var failed error
	// The library takes the answer to an earlier try for that to a later one while it begins a session; another socket helps.
	for range 2 {
		c, err := client.NewClient(host, d.port, d.target.Username, d.target.Password.reveal())
		if err != nil {
			return nil, &Error{Kind: Misconfigured, Address: d.target.Address, What: "user name", Cause: err}
		}
		if err = d.begin(ctx, c); err == nil {
			d.session = c
			return c, nil
		}
		failed = d.failed("begin a session", err)
		if KindOf(failed) != Failed {
			break
		}
	}
	return nil, failed
}

func (d *ipmi) begin(ctx context.Context, c *client.Client) (err error) {
	defer d.rescue("begin a session", &err)
	// 17 (SHA-256) is what today's BMCs have, 3 (SHA-1) what all have. Neither 0, which asks for no password, nor MD5 is tried.
	c = c.WithTimeout(d.options.Request/10).WithRetry(ipmiRetries).WithCipherSuiteID(types.CipherSuiteID17, types.CipherSuiteID3).
		WithMaxPrivilegeLevel(types.PrivilegeLevelOperator).WithUDPProxy(guardDialer{d.target.Password.reveal()})
	if err = c.Connect(ctx); err != nil {
		closeSocket(c)
	}
	return err
}

// closeSocket ends a session that never was, or of which the BMC knows nothing any more: no answer is waited for.
func closeSocket(c *client.Client) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Close(gone)
}

func (d *ipmi) Close() {
	if d.session == nil {
		return
	}
	var lost error
	defer d.rescue("end the session", &lost)
	ctx, cancel := context.WithTimeout(context.Background(), min(d.options.Request, 5*time.Second))
	defer cancel()
	_ = d.session.Close(ctx) // a session that stays ends by itself after a minute (section 6.12.15)
	d.session = nil
}

// drop forgets a session that does not work any more.
func (d *ipmi) drop() {
	if d.session != nil {
		closeSocket(d.session)
		d.session = nil
	}
}

// failed makes an error of this package of the library's. Its Connect joins the errors of its attempts as text.
func (d *ipmi) failed(what string, err error) error {
	e := &Error{Kind: Failed, Address: d.target.Address, What: what, Cause: errors.New(termtext.Mark(err.Error(), maxText))}
	if response, ok := types.IsResponseError(err); ok {
		e.Cause = fmt.Errorf("it answers with code %02Xh: %s", uint8(response.CompletionCode()), response.CompletionCode().String())
		switch response.CompletionCode() {
		case types.CodeInvalidCommand, types.CodeInvalidCommandForLUN, types.CodeRequestDataFieldInvalid, types.CodeParameterOutOfRange, types.CodeSubFnDisabled, types.CodeIllegalCommand:
			e.Kind = Unsupported
		case types.CodeInsufficientPrivilege:
			e.Kind, e.Remedy = Refused, fmt.Sprintf("give user %q the privilege level of an operator", d.target.Username)
		}
		return e
	}
	var network net.Error
	text := err.Error()
	says := func(code types.RmcpStatusCode) bool {
		return strings.Contains(text, types.NewRmcpStatusError(code).Error())
	}
	switch {
	case strings.Contains(text, client.ErrRAKPAuthentication.Error()), says(types.RmcpStatusCodeUnauthorizedName), says(types.RmcpStatusCodeInvalidIntegrityCheckValue):
		e.Kind, e.What = Refused, fmt.Sprintf("does not accept user %q with this password", d.target.Username)
		e.Cause, e.Remedy = nil, "set the right one: coldrack bmc set-password"
	case says(types.RmcpStatusCodeUnauthorizedRoleOfPriLevel):
		e.Kind, e.Remedy = Refused, fmt.Sprintf("give user %q the privilege level of an operator", d.target.Username)
	case errors.As(err, &network), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), strings.Contains(text, "deadline"), strings.Contains(text, "timed out"):
		e.Kind, e.What, e.Cause = Unreachable, what+": no answer on UDP port "+strconv.Itoa(d.port), nil
		e.Remedy = "is the BMC's network reachable from the server, and is IPMI over LAN switched on in the BMC?"
	}
	return e
}

func (d *ipmi) Power(ctx context.Context) (state State, err error) {
	defer d.rescue("read the power", &err)
	c, err := d.connect(ctx)
	if err != nil {
		return Unknown, err
	}
	status, err := c.GetChassisStatus(ctx)
	if err != nil {
		d.drop()
		return Unknown, d.failed("read the power", err)
	}
	if status.PowerIsOn {
		return On, nil
	}
	return Off, nil
}

// ipmiRequests are chassis controls (section 28.3), which a BMC does not list.
func ipmiRequests() requests {
	return requests{PowerOn: {"power up"}, PowerOff: {"power down"}, Shutdown: {"soft shutdown"}, PowerCycle: {"power cycle"}, Reset: {"hard reset"}}
}

func chassisControls() map[string]chassis.ChassisControl {
	return map[string]chassis.ChassisControl{
		"power up": chassis.ChassisControlPowerUp, "power down": chassis.ChassisControlPowerDown, "soft shutdown": chassis.ChassisControlSoftShutdown,
		"power cycle": chassis.ChassisControlPowerCycle, "hard reset": chassis.ChassisControlHardReset,
	}
}

func (d *ipmi) Do(ctx context.Context, a Action) (err error) {
	defer d.rescue("change the power", &err)
	now, err := d.Power(ctx)
	if err != nil {
		return err
	}
	err = d.carryOut(ctx, a, now, nil)
	if a == PowerCycle && KindOf(err) == Unsupported {
		// Power cycle is optional (table 28-4).
		return d.carryOut(ctx, a, now, []string{"power up", "power down"})
	}
	return err
}

func (d *ipmi) carryOut(ctx context.Context, a Action, now State, offered []string) error {
	steps, err := ipmiRequests().steps(a, now, offered)
	if err != nil {
		return &Error{Kind: Unsupported, Address: d.target.Address, What: "cannot do this", Cause: err}
	}
	for _, next := range steps {
		if err := d.control(ctx, next, now); err != nil {
			return err
		}
		now = next.until
	}
	return nil
}

func (d *ipmi) control(ctx context.Context, next step, before State) error {
	c, err := d.connect(ctx)
	if err != nil {
		return err
	}
	what := "asked for " + next.request
	var lost error
	c = c.WithRetry(0).WithTimeout(d.options.Request / 2)
	_, err = c.ChassisControl(ctx, chassisControls()[next.request])
	c.WithRetry(ipmiRetries).WithTimeout(d.options.Request / 10)
	if err != nil {
		lost = d.failed(what, err)
		if KindOf(lost) != Unreachable {
			return lost
		}
		d.drop()
	}
	limit := d.options.Settle
	if next.request == "soft shutdown" {
		limit = d.options.Shutdown
	}
	now, err := settled(ctx, d, d.options, next.until, limit)
	switch {
	case err != nil:
		return err
	case now != next.until && next.request == "soft shutdown":
		return &Error{Kind: Unfinished, Address: d.target.Address, What: fmt.Sprintf("%s, and the power is still %s after %s", what, now, limit),
			Remedy: "the operating system did not end; cut its power: coldrack power off --hard"}
	case now != next.until:
		return &Error{Kind: Unfinished, Address: d.target.Address, What: fmt.Sprintf("%s, and the power is still %s after %s", what, now, limit), Remedy: "look at the machine's console"}
	case lost != nil && before == next.until:
		return &Error{Kind: Uncertain, Address: d.target.Address, What: what, Cause: fmt.Errorf("no answer came; the power is %s, as before", now),
			Remedy: "look whether the machine has restarted before you ask again"}
	}
	return nil
}

func (d *ipmi) BootOnce(ctx context.Context, b Boot) (err error) {
	defer d.rescue("choose what is booted", &err)
	selector, ok := map[Device]types.BootDeviceSelector{BootNetwork: types.BootDeviceSelectorForcePXE, BootDisk: types.BootDeviceSelectorForceHardDrive}[b.Device]
	if !ok {
		return &Error{Kind: Unsupported, Address: d.target.Address, What: fmt.Sprintf("IPMI cannot boot %q", b.Device), Remedy: "boot from the network, or use the BMC's Redfish"}
	}
	c, err := d.connect(ctx)
	if err != nil {
		return err
	}
	// A BMC forgets the choice after a minute, and many servers need longer to start: https://github.com/kinvolk/racker/pull/36.
	// Not all know this parameter.
	_ = c.SetSystemBootOptionsParamFor(ctx, &types.BootOptionParam_BMCBootFlagValidBitClear{DontClearOnCommandReceivedTimeout: true})
	_ = c.SetSystemBootOptionsParamFor(ctx, &types.BootOptionParam_BootInfoAcknowledge{ByBIOSPOST: true})
	if err := c.SetBootDevice(ctx, selector, types.BIOSBootType(b.Firmware == UEFI), false); err != nil {
		return d.failed(fmt.Sprintf("choose %s for the next boot", b.Device), err)
	}
	return nil
}

func (d *ipmi) Inventory(ctx context.Context) (inv Inventory, err error) {
	defer d.rescue("read the inventory", &err)
	c, err := d.connect(ctx)
	if err != nil {
		return inv, err
	}
	fru, err := c.GetFRU(ctx, 0, "")
	if err != nil {
		if _, said := types.IsResponseError(err); !said {
			return inv, d.failed("read the inventory (FRU)", err)
		}
	} else if p := fru.ProductInfoArea; p != nil {
		inv.Manufacturer, inv.Model, inv.Serial = fruText(p.Manufacturer), fruText(p.Name), fruText(p.SerialNumber)
	}
	// BMCs differ in the order of the bytes; SMBIOS' is the usual one.
	if guid, err := c.GetSystemGUID(ctx); err == nil {
		if id, err := types.ParseGUID(guid.GUID[:], types.GUIDModeSMBIOS); err == nil && guid.GUID != [16]byte{} {
			inv.UUID = id.String()
		}
	}
	lan := &types.LanConfigParam_MAC{}
	if err := c.GetLanConfigParamFor(ctx, types.ChannelNumberSelf, lan); err == nil {
		inv.BMCMAC, _ = macOf(lan.MAC.String())
	}
	return inv, nil
}

func fruText(b []byte) string {
	return termtext.Line(strings.Trim(string(b), " \x00"), 128)
}

func (d *ipmi) Probe(ctx context.Context) (p Probe, err error) {
	defer d.rescue("ask what it is", &err)
	p = Probe{Protocol: IPMI, Version: "2.0", EventLog: -1, Power: Unknown}
	power, err := d.Power(ctx)
	if err != nil {
		return p, err
	}
	p.Power, p.Actions, p.Devices = power, Actions(), []Device{BootNetwork, BootDisk}
	c := d.session
	if id, err := c.GetDeviceID(ctx); err == nil {
		p.Vendor = termtext.Line(types.OEM(id.ManufacturerID).String(), 128)
		p.Model = fmt.Sprintf("product %d", id.ProductID)
		p.Firmware = fmt.Sprintf("%d.%02x", id.MajorFirmwareRevision, id.MinorFirmwareRevision)
	}
	if log, err := c.GetSELInfo(ctx); err == nil {
		p.EventLog = int(log.Entries)
	}
	p.Inventory, err = d.Inventory(ctx)
	return p, err
}
