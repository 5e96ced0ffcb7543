package discovery

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A server's clock may be right to a second; less is not worth a step of the clock.
const clockTolerance = time.Second

// plainTime asks the boot listener for the time.
//
// What this trusts: anybody on the boot network can answer plain HTTP, and so set this machine's clock.
// That lets them make an expired or not yet valid certificate look valid, or a valid one invalid (which
// only stops the install). It does not let them pass for the server: the pin on the CA's key stands
// whatever the time. After TLS the clock is set again from the authenticated server. Without this step a
// machine with an empty clock battery, years off, could not even begin to speak TLS.
func plainTime(ctx context.Context, boot, agent string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(boot, "/")+"/time", nil)
	if err != nil {
		return time.Time{}, err
	}
	req.Header.Set("User-Agent", agent)
	sent := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	trip := time.Since(sent)
	b, err := io.ReadAll(io.LimitReader(resp.Body, 100))
	if err != nil {
		return time.Time{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return time.Time{}, fmt.Errorf("the server answered %s", resp.Status)
	}
	t, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(b)))
	if err != nil {
		return time.Time{}, fmt.Errorf("the server's time: %w", err)
	}
	if t.Year() < 2024 || t.Year() > 2200 {
		return time.Time{}, fmt.Errorf("the server's clock says %s, which cannot be: set it right first", t.Format(time.RFC3339))
	}
	return t.Add(trip / 2), nil
}

// setClock sets the system's clock and, best effort, the one that the battery keeps. It returns by how
// much the clock was wrong, zero if that was not worth a change.
func setClock(t time.Time) (time.Duration, error) {
	off := time.Since(t)
	if off.Abs() < clockTolerance {
		return 0, nil
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return off, fmt.Errorf("set the clock: %w", err)
	}
	if rtc, err := os.OpenFile("/dev/rtc0", os.O_WRONLY, 0); err == nil {
		u := t.UTC()
		_ = unix.IoctlSetRTCTime(int(rtc.Fd()), &unix.RTCTime{
			Sec: int32(u.Second()), Min: int32(u.Minute()), Hour: int32(u.Hour()),
			Mday: int32(u.Day()), Mon: int32(u.Month()) - 1, Year: int32(u.Year()) - 1900,
		})
		_ = rtc.Close()
	}
	return off, nil
}
