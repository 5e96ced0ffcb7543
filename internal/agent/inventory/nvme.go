package inventory

import (
	"encoding/binary"
	"math"

	"coldrack.dev/internal/contract/wire"
)

// nvmeHealthSize is the length of the log page SMART / Health Information (02h), NVM Express Base Specification 2.0, 5.16.1.3.
const nvmeHealthSize = 512

// nvmeWarnings are the bits of Critical Warning.
var nvmeWarnings = []string{"spare", "temperature", "reliability", "read-only", "backup", "persistent-memory"}

// nvmeHealth decodes the log page, nil if it is none.
func nvmeHealth(page []byte) *wire.DiskHealth {
	if len(page) < nvmeHealthSize {
		return nil
	}
	// A temperature of 0 K is one that is not reported, and a page of zeros a controller that knows no such log.
	kelvin := int(binary.LittleEndian.Uint16(page[1:]))
	if kelvin == 0 && page[3] == 0 && page[4] == 0 && page[5] == 0 {
		return nil
	}
	h := &wire.DiskHealth{
		SparePercent: int(page[3]), SpareThresholdPercent: int(page[4]), UsedPercent: int(page[5]),
		// Thousands of 512 bytes, rounded up.
		WrittenBytes: times(counter(page[48:]), 512_000),
		PowerOnHours: counter(page[128:]), UnsafeShutdowns: counter(page[144:]), MediaErrors: counter(page[160:]),
	}
	if kelvin > 0 {
		h.TemperatureCelsius = kelvin - 273
	}
	for bit, name := range nvmeWarnings {
		if page[0]&(1<<bit) != 0 {
			h.Warnings = append(h.Warnings, name)
		}
	}
	return h
}

// counter is a number of 16 bytes, or the largest that fits into 8.
func counter(b []byte) uint64 {
	if binary.LittleEndian.Uint64(b[8:]) != 0 {
		return math.MaxUint64
	}
	return binary.LittleEndian.Uint64(b)
}

func times(a, b uint64) uint64 {
	if a > math.MaxUint64/b {
		return math.MaxUint64
	}
	return a * b
}
