package identify

import (
	"net"
	"slices"
	"strings"
)

// What vendors put on many machines. A value in these tables identifies nobody. Add one only with its reason, and only when
// it was seen on several machines.
var (
	duplicateMACs = map[string]string{
		"00:a0:c9:00:00:00": "Intel network controllers whose memory was never programmed",
		"88:88:88:88:87:88": "Intel's placeholder for mainboards whose maker wrote no address",
		"00:04:0b:80:80:80": "nForce mainboards whose maker wrote no address",
		"00:e0:4c:68:00:01": "Realtek controllers and USB adapters with the address of the reference design",
		"be:3a:f2:b6:05:9f": "the USB network interface of BMCs with AMI MegaRAC",
		"00:f5:f0:40:71:fe": "Libreboot images before 2018",
		"00:4c:69:62:72:65": "Libreboot images",
	}
	duplicateUUIDs = []string{
		"03000200-0400-0500-0006-000700080009", // AMI's default
		"12345678-1234-5678-90ab-cddeefaabbcc", // Gigabyte and others
		"12345678-1234-5678-1234-567812345678",
		"01234567-89ab-cdef-0123-456789abcdef",
		"01020304-0506-0708-090a-0b0c0d0e0f10",
		"00010203-0405-0607-0809-0a0b0c0d0e0f",
		"11111111-2222-3333-4444-555555555555",
		"4c4c4544-0000-2010-8020-80c04f202020", // Dell without a service tag
		"fefefefe-fefe-fefe-fefe-fefefefefefe",
	}
	emptySerials = []string{
		"DEFAULT STRING", "SYSTEM SERIAL NUMBER", "CHASSIS SERIAL NUMBER", "BASE BOARD SERIAL NUMBER",
		"SERIAL NUMBER", "SERIAL", "NONE", "N/A", "NA", "NULL", "NIL", "EMPTY", "UNKNOWN", "INVALID", "UNDEFINED",
		"NOT SPECIFIED", "NOT APPLICABLE", "NOT AVAILABLE", "NOT SET", "NO SERIAL", "NO SERIAL NUMBER",
		"OEM", "TBD", "0123456789", "01234567890", "123456789", "1234567890", "012345678", "12345678", "123456", "FILLED BY OEM",
		"TO BE FILLED BY OEM", "SSN12345678901234567", "SSSSSSSSSSSS", "0123456789ABCDEF",
	}
)

// MAC returns a MAC in lower case with colons, or "" for what is not the address of one NIC: zeros,
// broadcast, multicast, InfiniBand's 20 bytes.
func MAC(mac string) string {
	hw, err := net.ParseMAC(strings.TrimSpace(mac))
	if err != nil || len(hw) != 6 || hw[0]&1 == 1 || allEqual(hw.String(), ":") {
		return ""
	}
	return hw.String()
}

// DuplicateMAC says which machines share a MAC that is known from many, or "" for any other.
func DuplicateMAC(mac string) string { return duplicateMACs[MAC(mac)] }

// ownMAC is MAC, or "" for one that is known from many machines.
func ownMAC(mac string) string {
	if DuplicateMAC(mac) != "" {
		return ""
	}
	return MAC(mac)
}

// ownMACs are those of the MACs that can identify a machine, each once: no known duplicate, and none that is attached by USB,
// unless the machine booted from it. A USB interface is the same in every server of a type where it is the BMC's, and is
// carried from machine to machine where it is an adapter.
func ownMACs(macs, usb []string, boot string) []string {
	var list []string
	for _, mac := range macs {
		if mac = ownMAC(mac); mac == MAC(boot) || !slices.ContainsFunc(usb, func(u string) bool { return MAC(u) == mac }) {
			list = appendValid(list, mac)
		}
	}
	return list
}
