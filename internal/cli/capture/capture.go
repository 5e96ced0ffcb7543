// Package capture explains a packet capture of machines that boot from the network: what each of them asked, who answered, what it
// loaded, and where that ended.
//
// A capture comes from a stranger's network. Whatever it holds, its tables stay bounded (a record is as long as the file says), and nothing of it reaches the terminal as
// a control character.
package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Event is one line: what a packet says, or what was seen of several.
type Event struct {
	// Packet counts from 1, as Wireshark does.
	Packet int `json:"packet"`
	// Seconds since the first packet.
	Seconds float64 `json:"seconds"`
	// Client is the hardware address of the machine that it is about; empty: nobody's in particular.
	Client string `json:"client,omitempty"`
	// Protocol is DHCP, TFTP, HTTP, ARP or TCP.
	Protocol string `json:"protocol"`
	Text     string `json:"text"`
}

// State is how a client's boot went.
type State string

const (
	OK   State = "ok"
	Warn State = "warn"
	Fail State = "fail"
)

// Client is a machine of the capture.
type Client struct {
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses,omitempty"`
	State     State    `json:"state"`
	// Verdict is what became of it, Do what to do about that.
	Verdict string `json:"verdict"`
	Do      string `json:"do,omitempty"`
	// Notes are further things that a person should know.
	Notes []string `json:"notes,omitempty"`
}

// Report is what a capture comes to.
type Report struct {
	Packets int `json:"packets"`
	// Unread are packets of other protocols, or that were cut too short.
	Unread int `json:"unread"`
	// Repeated are events like those before, which were not told.
	Repeated int      `json:"repeated"`
	Clients  []Client `json:"clients"`
	// Cut says why the end of the capture is missing, empty when it is not.
	Cut string `json:"cut,omitempty"`
}

// Bounds on what is remembered. Whoever fills a table makes the explanation forget, not grow.
const (
	mostClients  = 4096
	mostFlows    = 4096  // TFTP transfers and TCP connections, each
	mostNames    = 16384 // addresses with their hardware addresses
	mostPerThing = 64    // transfers, connections, servers and notes of one client
	mostAlike    = 3     // events of one client with the same text that are told
	mostTexts    = 65536 // texts of events that are remembered for that
)

// Explain reads a capture in the format of pcap or pcapng, and tells of its packets one after the other. The error is for a file that
// is no capture; one that breaks off is explained as far as it goes.
func Explain(r io.Reader, tell func(Event)) (Report, error) {
	packets, err := open(r)
	if err != nil {
		return Report{}, err
	}
	x := newExplainer(tell)
	for {
		data, at, link, err := packets.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			x.report.Cut = fmt.Sprintf("after packet %d the capture cannot be read: %v", x.report.Packets, err)
			break
		}
		x.packet(data, at, link)
	}
	return x.end(), nil
}

// source are the packets of a file.
type source struct {
	next func() (data []byte, at time.Time, link layers.LinkType, err error)
}

const ngMagic = 0x0a0d0d0a // the block type of a pcapng section, the same in both byte orders

func open(r io.Reader) (source, error) {
	buffered := bufio.NewReaderSize(r, 1<<16)
	magic, err := buffered.Peek(4)
	if err != nil {
		return source{}, errors.New("the file is empty; want a capture in the format of pcap or pcapng, as tcpdump -w and Wireshark write it")
	}
	if binary.BigEndian.Uint32(magic) == ngMagic {
		ng, err := pcapgo.NewNgReader(buffered, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		if err != nil {
			return source{}, fmt.Errorf("read the capture as pcapng: %w", err)
		}
		return source{func() ([]byte, time.Time, layers.LinkType, error) {
			data, info, err := ng.ReadPacketData()
			return data, info.Timestamp, linkOf(info), err
		}}, nil
	}
	plain, err := pcapgo.NewReader(buffered)
	if err != nil {
		return source{}, fmt.Errorf("this is no capture in the format of pcap or pcapng, as tcpdump -w and Wireshark write it: %w", err)
	}
	return source{func() ([]byte, time.Time, layers.LinkType, error) {
		data, info, err := plain.ReadPacketData()
		return data, info.Timestamp, plain.LinkType(), err
	}}, nil
}

// linkOf is the link type of the interface that a packet of pcapng was seen on.
func linkOf(info gopacket.CaptureInfo) layers.LinkType {
	if len(info.AncillaryData) > 0 {
		if link, ok := info.AncillaryData[0].(layers.LinkType); ok {
			return link
		}
	}
	return layers.LinkTypeNull
}
