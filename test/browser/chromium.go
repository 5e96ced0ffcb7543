package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// program is what the browser is called.
const program = "chromium"

// patience is how long a page is waited for.
const patience = 90 * time.Second

// chromium is a headless browser with one page. It notes what no page of ours may do.
type chromium struct {
	ctx  context.Context
	host string // that may be asked

	mu       sync.Mutex
	problems []string
}

// startChromium runs a browser that may ask nobody but host.
func startChromium(ctx context.Context, host string) (*chromium, func(), error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.IgnoreCertErrors,
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
	allocator, endAllocator := chromedp.NewExecAllocator(ctx, options...)
	page, endPage := chromedp.NewContext(allocator)
	end := func() { endPage(); endAllocator() }
	b := &chromium{ctx: page, host: host}
	err := chromedp.Listen(page, b.note)
	if err == nil {
		_, err = chromedp.Call(page, network.Enable, network.EnableParams{})
	}
	if err == nil {
		_, err = chromedp.Call(page, runtime.Enable, cdp.Empty{})
	}
	if err == nil {
		_, err = chromedp.Call(page, cdplog.Enable, cdp.Empty{})
	}
	if err != nil {
		end()
		return nil, nil, fmt.Errorf("start %s: %w", program, err)
	}
	return b, end, nil
}

// note keeps problems: requests to others, exceptions, and what the browser refused for the content security policy.
func (b *chromium) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, "https://"+b.host+"/") && !strings.HasPrefix(u, "blob:https://"+b.host+"/") && u != "about:blank" && !strings.HasPrefix(u, "data:") { // which asks nobody: Chromium's own pictures for fields of dates
			b.problems = append(b.problems, "a request to "+u)
		}
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		b.problems = append(b.problems, "exception: "+text)
	case *cdplog.EventEntryAdded:
		// What the API answers is the page's to deal with; a file of the pages that is not there is a fault.
		answer := e.Entry.Source == cdplog.EntrySourceNetwork && !strings.HasPrefix(e.Entry.URL, "https://"+b.host+"/ui/")
		if e.Entry.Level == cdplog.EntryLevelError && !answer {
			b.problems = append(b.problems, fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	}
}

// trouble is what was noted.
func (b *chromium) trouble() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.problems)
}

// act does something in a page, within its patience.
func act[T any](b *chromium, action chromedp.Action[T]) (T, error) {
	ctx, stop := context.WithTimeout(b.ctx, patience)
	defer stop()
	return chromedp.Run(ctx, action)
}

// call is act for a command of the browser.
func call[P, R any](b *chromium, command cdp.Command[P, R], params P) error {
	ctx, stop := context.WithTimeout(b.ctx, patience)
	defer stop()
	_, err := chromedp.Call(ctx, command, params)
	return err
}

// value of a JavaScript expression, or of what it promises.
func value[T any](b *chromium, expression string) (T, error) {
	return act(b, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// open goes to an address.
func (b *chromium) open(address string) error {
	_, err := act(b, chromedp.Navigate(address))
	return err
}

// look is the size of the window, and what the person prefers.
type look struct {
	width, height int64
	dark          bool
}

func (b *chromium) look(l look) error {
	scheme := "light"
	if l.dark {
		scheme = "dark"
	}
	if err := call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.width, Height: l.height, DeviceScaleFactor: 1, Mobile: l.width < 600}); err != nil {
		return err
	}
	return call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
}

// wait until a JavaScript expression is true.
func (b *chromium) wait(expression string) error {
	ctx, stop := context.WithTimeout(b.ctx, patience)
	defer stop()
	for {
		last, err := chromedp.Run(ctx, chromedp.Evaluate[string](`(() => { try { return String(Boolean(`+expression+`)) } catch (e) { return String(e) } })()`))
		if last == "true" {
			return nil
		}
		select {
		case <-ctx.Done():
			text, _ := value[string](b, `document.body.innerText.slice(0, 1500)`)
			return fmt.Errorf("%s stays %s (%v); the page says:\n%s", expression, last, err, text)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// press presses keys as a person does: "a", "Enter", " ".
func (b *chromium) press(keys ...string) error {
	named := map[string]string{"Enter": kb.Enter, "Escape": kb.Escape, "ArrowDown": kb.ArrowDown}
	for _, key := range keys {
		if code, ok := named[key]; ok {
			key = code
		}
		if _, err := act(b, chromedp.KeyEvent(key)); err != nil {
			return err
		}
	}
	return nil
}

// write replaces what is in a field by what a person types there.
func (b *chromium) write(selector, text string) error {
	if _, err := value[bool](b, `(() => { const e = document.querySelector(`+quoted(selector)+`); e.focus(); e.select(); return true; })()`); err != nil {
		return err
	}
	return b.press(text)
}

// quoted is text as a JavaScript string.
func quoted(text string) string {
	content, _ := json.Marshal(text) // a string always can be
	return string(content)
}
