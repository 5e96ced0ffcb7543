package rehearse

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseShare reads 1% or 0.01.
func ParseShare(text string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v < 1) {
		return 0, fmt.Errorf("%q is not a share: write for example 1%%", text)
	}
	return v, nil
}

// ParseRate reads a rate in bits a second and gives bytes a second.
func ParseRate(text string) (int64, error) {
	number := strings.TrimRight(text, "kKMGbits/")
	factor, known := map[string]float64{"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[strings.TrimSuffix(strings.ToLower(text[len(number):]), "/s")]
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || v*factor < 8000 {
		return 0, fmt.Errorf("%q is not a rate: write for example 100Mbit or 1Gbit", text)
	}
	return int64(v * factor / 8), nil
}
