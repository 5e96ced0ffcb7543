package validate

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// dhcpForm is how people write the value of an option, and how it goes over the wire.
type dhcpForm func(value string) ([]byte, error)

// dhcpForms are the options of RFC 2132 and its successors whose form is known. Others are text.
var dhcpForms = map[int]dhcpForm{
	2:   number(32),  // time offset, seconds
	7:   addressList, // log servers
	9:   addressList, // LPR servers
	23:  number(8),   // IP time to live
	26:  mtu,
	41:  addressList, // NIS servers
	44:  addressList, // NetBIOS name servers
	46:  number(8),   // NetBIOS node type
	69:  addressList, // SMTP servers
	119: searchList,
	121: routes,
	150: addressList, // TFTP servers, as telephones want them
	249: routes,      // 121 before it had a number
}

// dhcpRefused are options that are not for people to set, with the reason.
var dhcpRefused = map[int]string{
	1: "follows from spec.cidr", 3: "is spec.gateway", 6: "is spec.dns", 12: "is the Machine's host name", 15: "is spec.domain", 28: "follows from spec.cidr",
	42: "is spec.ntp", 51: "is spec.leaseTime", 58: "follows from spec.leaseTime", 59: "follows from spec.leaseTime",
	66: "is what Coldrack boots machines by", 67: "is what Coldrack boots machines by", 60: "is what Coldrack boots machines by", 175: "is what Coldrack boots machines by",
}

// protocol are options that are a part of the exchange itself.
var dhcpProtocol = []int{0, 50, 52, 53, 54, 55, 56, 57, 61, 77, 81, 82, 90, 93, 94, 97, 118, 255}

// mostDHCPOption is the longest value that is taken, bytes.
const mostDHCPOption = 120

// MostDHCPOptions is how much room an answer that every client takes, of 576 bytes, leaves for options of people: values, with two bytes each.
const MostDHCPOptions = 150

// DHCPOption encodes an option that people set: value in the form that its code has, or hexadecimal digits for any.
func DHCPOption(code int, value, digits string) ([]byte, error) {
	if code < 1 || code > 254 {
		return nil, errors.New("is not between 1 and 254")
	}
	if why, ok := dhcpRefused[code]; ok {
		return nil, fmt.Errorf("cannot be set here: it %s", why)
	}
	for _, own := range dhcpProtocol {
		if code == own {
			return nil, errors.New("cannot be set: it belongs to the exchange itself")
		}
	}
	var encoded []byte
	var err error
	switch {
	case (value == "") == (digits == ""):
		return nil, errors.New("needs either value or hex")
	case digits != "":
		if encoded, err = hex.DecodeString(strings.NewReplacer(":", "", " ", "", ".", "").Replace(digits)); err != nil {
			return nil, fmt.Errorf("has the hex %q: want pairs of hexadecimal digits, such as 01:04:ff", digits)
		}
	case code == 43 || code == 125:
		return nil, errors.New("is of a form that its vendor says; write it as hex")
	default:
		form := dhcpForms[code]
		if form == nil {
			form = func(text string) ([]byte, error) { return []byte(text), nil }
		}
		if encoded, err = form(value); err != nil {
			return nil, fmt.Errorf("has the value %q: %w", value, err)
		}
	}
	if len(encoded) == 0 || len(encoded) > mostDHCPOption {
		return nil, fmt.Errorf("has %d bytes; want between 1 and %d", len(encoded), mostDHCPOption)
	}
	return encoded, nil
}

func number(bits int) dhcpForm {
	return func(value string) ([]byte, error) {
		n, err := strconv.ParseInt(value, 10, 64)
		most := int64(1)<<bits - 1
		if err != nil || n > most || n < -(most+1)/2 {
			return nil, fmt.Errorf("want a number of %d bits", bits)
		}
		b := binary.BigEndian.AppendUint64(nil, uint64(n))
		return b[8-bits/8:], nil
	}
}

func mtu(value string) ([]byte, error) {
	const least = 68 // RFC 2132, section 5.1
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n < least {
		return nil, fmt.Errorf("want a number from %d to 65535", least)
	}
	return binary.BigEndian.AppendUint16(nil, uint16(n)), nil
}

// words are separated by commas, spaces, or both.
func words(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
}

func addressList(value string) ([]byte, error) {
	var b []byte
	for _, word := range words(value) {
		a, err := netip.ParseAddr(word)
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("%q is not an IPv4 address", word)
		}
		b = append(b, a.AsSlice()...)
	}
	return b, nil
}

// searchList is RFC 3397's, without compression, which is for servers to choose.
func searchList(value string) ([]byte, error) {
	var b []byte
	for _, word := range words(value) {
		if err := Domain(word); err != nil {
			return nil, fmt.Errorf("%q %w", word, err)
		}
		for label := range strings.SplitSeq(word, ".") {
			b = append(append(b, byte(len(label))), label...)
		}
		b = append(b, 0)
	}
	return b, nil
}

// routes are RFC 3442's: "10.0.0.0/8 via 10.20.0.1, 0.0.0.0/0 via 10.20.0.254".
func routes(value string) ([]byte, error) {
	var b []byte
	for route := range strings.SplitSeq(value, ",") {
		to, via, ok := strings.Cut(strings.TrimSpace(route), " via ")
		network, err := netip.ParsePrefix(strings.TrimSpace(to))
		router, err2 := netip.ParseAddr(strings.TrimSpace(via))
		switch {
		case !ok || err != nil || err2 != nil || !network.Addr().Is4() || !router.Is4():
			return nil, fmt.Errorf("%q is not a route such as 10.0.0.0/8 via 10.20.0.1", strings.TrimSpace(route))
		case network != network.Masked():
			return nil, fmt.Errorf("%s has bits set behind the prefix length; the network is %s", network, network.Masked())
		}
		b = append(b, byte(network.Bits()))
		b = append(b, network.Addr().AsSlice()[:(network.Bits()+7)/8]...)
		b = append(b, router.AsSlice()...)
	}
	return b, nil
}
