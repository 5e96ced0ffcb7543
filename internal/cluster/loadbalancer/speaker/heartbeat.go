package speaker

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"coldrack.dev/internal/cluster/loadbalancer"
)

// heartbeat is what speakers send each other, as one UDP datagram:
//
//	4 bytes "CRL1"; 8 bytes number, big-endian; 1 byte standing;
//	1 byte length and the node's name; 1 byte count and networks of 18 bytes: family (4 or 6), 16 bytes address, length;
//	32 bytes HMAC-SHA-256 of all that by the cluster's key.
type heartbeat struct {
	// number grows with each heartbeat of a node, also across its restarts: one that was recorded cannot be sent again.
	number   uint64
	standing loadbalancer.Standing
	node     string
	networks []netip.Prefix
}

const (
	magic       = "CRL1"
	maxNetworks = 32
	networkLen  = 18
	// maxHeartbeat is below the least MTU of IPv6.
	maxHeartbeat = len(magic) + 8 + 1 + 1 + 255 + 1 + maxNetworks*networkLen + sha256.Size
)

func sign(b, key []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(b)
	return mac.Sum(nil)
}

// encode leaves networks out beyond the 32nd.
func (h heartbeat) encode(key []byte) []byte {
	b := append(make([]byte, 0, maxHeartbeat), magic...)
	b = binary.BigEndian.AppendUint64(b, h.number)
	b = append(b, byte(h.standing), byte(min(len(h.node), 255)))
	b = append(b, h.node[:min(len(h.node), 255)]...)
	networks := h.networks[:min(len(h.networks), maxNetworks)]
	b = append(b, byte(len(networks)))
	for _, n := range networks {
		family := byte(6)
		if n.Addr().Is4() {
			family = 4
		}
		address := n.Addr().As16()
		b = append(b, family)
		b = append(b, address[:]...)
		b = append(b, byte(n.Bits()))
	}
	return append(b, sign(b, key)...)
}

var errForeign = errors.New("not a heartbeat of this cluster")

func decode(b, key []byte) (heartbeat, error) {
	if len(b) < len(magic)+sha256.Size || string(b[:len(magic)]) != magic {
		return heartbeat{}, errForeign
	}
	body, tag := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if !hmac.Equal(tag, sign(body, key)) {
		return heartbeat{}, errForeign
	}
	// From here on it is of a speaker that has the key. It may be of another version.
	short := errors.New("heartbeat is cut off")
	body = body[len(magic):]
	if len(body) < 10 {
		return heartbeat{}, short
	}
	h := heartbeat{number: binary.BigEndian.Uint64(body), standing: loadbalancer.Standing(body[8])}
	if h.standing > loadbalancer.Ready {
		return heartbeat{}, fmt.Errorf("heartbeat has standing %d", body[8])
	}
	name := int(body[9])
	body = body[10:]
	if len(body) < name+1 {
		return heartbeat{}, short
	}
	h.node = string(body[:name])
	count := int(body[name])
	body = body[name+1:]
	if count > maxNetworks || len(body) < count*networkLen {
		return heartbeat{}, short
	}
	for ; count > 0; count-- {
		address := netip.AddrFrom16([16]byte(body[1:17]))
		if body[0] == 4 {
			address = address.Unmap()
		}
		network := netip.PrefixFrom(address, int(body[17]))
		if !network.IsValid() {
			return heartbeat{}, fmt.Errorf("heartbeat has a network %s/%d", address, body[17])
		}
		h.networks = append(h.networks, network)
		body = body[networkLen:]
	}
	return h, nil
}
